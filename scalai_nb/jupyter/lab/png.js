// Of a button beside a link to an SVG: saves the drawing as a PNG, on white, of so many pixels across.
const wide = 1400;
const drawing = this.parentNode.querySelector('a');
const picture = new Image();
picture.onload = () => {
  const canvas = document.createElement('canvas');
  canvas.width = wide;
  canvas.height = Math.round(wide * picture.height / picture.width);
  const pen = canvas.getContext('2d');
  pen.fillStyle = 'white';
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
  const link = document.createElement('a');
  link.href = canvas.toDataURL('image/png');
  link.download = drawing.download.replace(/svg$/, 'png');
  link.click();
};
picture.src = drawing.href;
