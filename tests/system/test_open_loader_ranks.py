"""`penstock.open_loader` on two ranks: each gets its share, and they agree on the quarantined samples."""

import json
from collections.abc import Callable
from pathlib import Path

from penstock.shards.format import ShardSet
from tests.common import forked

NUM_TRAIN, BAD = 90, 7
RANK = """
import json, sys
import torch
import penstock

torch.distributed.init_process_group("gloo")
loader = penstock.open_loader(sys.argv[1], batch_size=15, image_size=32, max_bad_fraction=0.5)
val = penstock.open_loader(sys.argv[1], "val", batch_size=4, image_size=32)
seen = [[ids.tolist() for _, _, ids in loader] for _ in range(2)]
result = {"ids": seen, "val": [ids.tolist() for _, _, ids in val], "state": loader.state_dict()}
open(f"{sys.argv[2]}/{torch.distributed.get_rank()}.json", "w").write(json.dumps(result))
torch.distributed.destroy_process_group()
"""


def test_two_ranks(dataset_copy: Path, damage: Callable[[ShardSet, str, int, bytes], None], tmp_path: Path) -> None:
    damage(ShardSet.open(dataset_copy), "train", BAD, b"no JPEG")
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, script, dataset_copy, tmp_path]
    done = forked.run(words, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("quarantined: ") == 1, done.stderr
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    for epoch in range(2):
        seen = [sample_id for one in (first, second) for batch in one["ids"][epoch] for sample_id in batch]
        assert sorted(seen) == [-1, *(i for i in range(NUM_TRAIN) if i != BAD)]
    assert sorted(sample_id for one in (first, second) for batch in one["val"] for sample_id in batch) == list(
        range(19)
    )
    assert first["state"] == second["state"]
    assert first["state"]["bad_samples"] == [BAD]
