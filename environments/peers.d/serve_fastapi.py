"FastAPI on uvicorn as most people write it: one asynchronous function with pydantic in front"

import numpy as np
import uvicorn
from common import PORT, scorer
from fastapi import FastAPI
from pydantic import BaseModel


class Rows(BaseModel):
    instances: list[list[float]]


app, score = FastAPI(), scorer()


@app.get("/ready")
async def ready():
    return {}


@app.post("/predict")
async def predict(rows: Rows):
    return {"predictions": score(np.array(rows.instances, np.float32)).tolist()}


uvicorn.run(app, host="127.0.0.1", port=PORT, log_level="error", access_log=False)
