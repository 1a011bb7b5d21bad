"""A run over several processes, each with its share of every batch: `itra:ranks=2`.

`launch` starts this file once for each rank, through torch's launcher.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from one_run import Run, execute
from torch import distributed


def launch(run: Run, folders: dict[str, str]) -> dict[str, Any]:
    """The result of a run on `run.settings["ranks"]` processes.

    Raises:
        subprocess.CalledProcessError: if one of them fails; its output says why.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        ranks = [f"--nproc-per-node={run.settings['ranks']}", __file__, run.key, json.dumps(folders), str(result)]
        subprocess.run([*launcher, *ranks], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})  # noqa: S603
        return json.loads(result.read_text())


def main(run: str, folders: str, result: str) -> None:
    row = execute(Run(*json.loads(run)), json.loads(folders))
    if distributed.get_rank() == 0:
        Path(result).write_text(json.dumps(row))
    distributed.barrier()
    os._exit(0)  # the destructors of torch's process groups may wait for each other


if __name__ == "__main__":
    main(*sys.argv[1:])
