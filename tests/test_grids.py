"""A grid comes in blocks of times, as `open_file` has it; no more is read at once"""

import pickle
import sys

import numpy as np
import pytest
import xarray as xr
from conftest import tool

import scalai_nb as sn
from scalai_nb.data.ingestion import ingest
from scalai_nb.data.lake.lake import Lake
from scalai_nb.errors import ParameterError


@pytest.fixture(params=["nc", "zarr"])
def grid(request, tmp_path):
    "Temperatures by place and time, a mask without time, a missing cell"
    values = np.arange(3 * 40 * 5.0).reshape(3, 40, 5)
    values[1, 2, 3] = np.nan
    time = np.datetime64("2026-01-01", "ns") + np.arange(40) * np.timedelta64(6, "h")
    at = {"lat": [50.0, 51, 52], "time": time, "lon": np.arange(5.0)}
    ds = xr.Dataset(
        {"t2m": (("lat", "time", "lon"), values), "land": (("lat", "lon"), np.eye(3, 5))}, at
    )
    path = tmp_path / f"era5.{request.param}"
    if request.param == "zarr":
        ds.chunk(time=7).to_zarr(path, consolidated=False)
    else:
        ds.to_netcdf(path, engine="scipy")
    return path


@pytest.mark.parametrize("flat", [False, True])
def test_blocks_are_what_open_file_has(grid, flat):
    whole = sn.open_file(grid, flat=flat).compute()
    blocks = sn.read_source(grid, flat=flat, rows=150 if flat else 10)
    assert len(blocks) == 4 and sum(blocks.sizes) == whole.sizes["row"]
    assert {"t2m", "time"} <= set(blocks.columns) and ("land" in blocks.columns) == flat
    there = pickle.loads(pickle.dumps(blocks))
    for name in blocks.columns:
        values = np.concatenate([block[name].values for block in there])
        np.testing.assert_array_equal(values, whole[name].transpose("row", ...).values)
    np.testing.assert_array_equal(blocks[2:][1].t2m, blocks[3].t2m)
    assert list(blocks.select("t2m")[0].variables) == ["t2m"] or not flat
    with pytest.raises(ParameterError, match="'u10' is not in the columns"):
        sn.read_source(grid, "u10", flat=flat)


def test_only_new_times_come(grid, tmp_path):
    lake = Lake(tmp_path / "lake", author="you")
    assert ingest(lake, grid, "cells", flat=True, incremental="time", rows=60).rows == 600
    assert ingest(lake, grid, "cells", flat=True, incremental="time").version is None
    assert np.nanmax(lake.read("cells").t2m.values) == 599


def test_a_block_is_bounded_and_the_file_is_not_read_before(grid, monkeypatch):
    from scalai_nb.data.readers import grids

    monkeypatch.setattr(grids, "JOIN", 4_000)
    blocks = sn.read_source(grid)
    assert len(blocks) > 1 and all(block.nbytes <= 4_000 for block in blocks)


def test_what_is_no_grid(tmp_path):
    (tmp_path / "a.nc").write_text("no grid")
    with pytest.raises(ParameterError, match="cannot be read as a grid"):
        sn.read_source(tmp_path / "a.nc")
    xr.Dataset({"x": 1}).to_netcdf(tmp_path / "b.nc", engine="scipy")
    with pytest.raises(ParameterError, match="has no dimension"):
        sn.read_source(tmp_path / "b.nc")
    with pytest.raises(ParameterError, match="means 2 grids"):
        sn.read_source(tmp_path / "*.nc")


# ---- GRIB


@pytest.fixture
def grib(tmp_path, monkeypatch):
    "Writes a file of GRIB: fields by their short name, in 40 times, with a missing cell"
    (site,) = tool("grib").parent.glob("lib/python3.*/site-packages")
    if site.parent.name != f"python3.{sys.version_info.minor}":
        pytest.skip("grib in .services is of another Python")
    monkeypatch.setattr(sys, "path", [*sys.path, str(site)])
    import eccodes as ec

    place = {"Ni": 5, "Nj": 3, "latitudeOfFirstGridPointInDegrees": 52}
    place |= {"latitudeOfLastGridPointInDegrees": 50, "longitudeOfFirstGridPointInDegrees": 0}
    place |= {"longitudeOfLastGridPointInDegrees": 4, "bitsPerValue": 24}
    place |= {"iDirectionIncrementInDegrees": 1, "jDirectionIncrementInDegrees": 1}

    def write(*names):
        path = tmp_path / f"{'-'.join(names)}.grib2"
        with open(path, "wb") as file:
            for n in range(40):
                for name in names:
                    field = ec.codes_new_from_samples("regular_ll_sfc_grib2", ec.CODES_PRODUCT_GRIB)
                    at = {"dataDate": 20260101 + n // 4, "dataTime": n % 4 * 600}
                    for key, value in (place | at).items():
                        ec.codes_set(field, key, value)
                    ec.codes_set(field, "shortName", name)
                    values = np.arange(15.0) + 15 * n
                    if n == 1:
                        values[3] = 9999
                        ec.codes_set(field, "bitmapPresent", 1)
                        ec.codes_set(field, "missingValue", 9999)
                    ec.codes_set_values(field, values)
                    ec.codes_write(field, file)
                    ec.codes_release(field)
        return path

    return write


def test_grib_comes_as_it_is(grib, tmp_path):
    path = grib("2t")
    whole = sn.open_file(path).compute()
    assert whole.t2m.dims == ("row", "latitude", "longitude")
    expected = np.arange(600.0).reshape(40, 3, 5)
    expected[1, 0, 3] = np.nan
    np.testing.assert_allclose(whole.t2m.values, expected, atol=1e-3)
    blocks = sn.read_source(path, flat=True, rows=150)
    assert len(blocks) == 4 and {"t2m", "time", "latitude", "longitude"} <= set(blocks.columns)
    np.testing.assert_allclose(blocks[3].t2m, np.arange(450.0, 600), atol=1e-3)
    lake = Lake(tmp_path / "lake", author="you")
    assert ingest(lake, path, "cells", flat=True, incremental="time").rows == 600
    assert ingest(lake, path, "cells", flat=True, incremental="time").version is None
    assert [f.name for f in tmp_path.iterdir() if f.name != "lake"] == [path.name], "no index"


def test_no_field_of_grib_is_left_out_in_silence(grib, tmp_path):
    "At two metres and at ten: cfgrib takes what comes first"
    path = grib("2t", "10u")
    with pytest.raises(ParameterError, match="make no one grid.*heightAboveGround.*keys="):
        sn.read_source(path)
    low, high = (sn.read_source(path, keys={"level": n}) for n in (2, 10))
    assert ("t2m" in low.columns, "u10" in high.columns) == (True, True)
    assert low.fingerprint() != high.fingerprint()
    with pytest.raises(ParameterError, match="has no field of GRIB with {'level': 3}"):
        sn.read_source(path, keys={"level": 3})
    (tmp_path / "no.grib").write_bytes(b"no GRIB")
    with pytest.raises(ParameterError, match="no.grib cannot be read as GRIB"):
        sn.read_source(tmp_path / "no.grib")
    (tmp_path / "cut.grib2").write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ParameterError, match="cut.grib2 cannot be read as GRIB"):
        list(sn.read_source(tmp_path / "cut.grib2", keys={"level": 10}))


def test_keys_are_of_grib(grid):
    with pytest.raises(ParameterError, match="keys= chooses fields of GRIB"):
        sn.read_source(grid, keys={"level": 2})
