"""A grid comes in blocks of times, as `open_file` has it; no more is read at once"""

import pickle

import numpy as np
import pytest
import xarray as xr

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
