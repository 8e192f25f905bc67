def exchange(rank: int, port: int, folder: str) -> None:
    """One of two processes: sums gradients of 7 M parameters with the other, and keeps the rate and what was summed."""
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    world, summed, sum_tensor = distributed.start("cpu"), [], distributed.sum_tensor

    def watched(tensor: torch.Tensor) -> torch.Tensor:
        summed.append(len(tensor) if tensor.dim() else 0)
        return sum_tensor(tensor)

    distributed.sum_tensor = watched
    on = Opened(Recipe(), cast(ShardSet, None), world, 8, {})
    sample = stages.build_communication(on, 7_000_000).run(0.2)
    distributed.finish()
    (Path(folder) / str(rank)).write_text(json.dumps([sample.images_per_s, summed]))


def test_communication_sums_all_gradients_in_buckets(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    mp.spawn(exchange, (port, str(tmp_path)), nprocs=2)
    for rank in "01":
        images_per_s, summed = json.loads((tmp_path / rank).read_text())
        buckets = [size for size in summed if size]
        assert buckets[:2] == [25 * 2**20 // 4, 7_000_000 - 25 * 2**20 // 4]
        steps = len(buckets) // 2
        assert buckets == buckets[:2] * steps
        assert 0 < images_per_s < 8 * steps / 0.1, "a step is 8 images of a rank"
