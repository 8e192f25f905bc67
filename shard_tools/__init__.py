"""Pack images into shards, and inspect shards: the implementation of `python -m shard_tools` (`commands/`).

Packing, in the order of its steps:

    writer      `pack`, which runs all steps, and its settings, `PackOptions`
    sources/    where images come from: one module per kind lists images and their classes; `SOURCES` is the registry
    listing     the list on disk, with labels: `subset` chooses, `classes` names the classes, `records` reads it back
    execute     runs the missing shards on `workers`: processes, a thread, or a Dask cluster
    shard       `write_shard` makes one shard; `encode` checks and makes its JPEGs, `tarwriter` and `tarindex` write it
    part        the record of one finished shard, until all are finished; `resume` continues an interrupted run
    rejected, duplicates, report    what users should know afterwards; `upload` moves everything to a URL

Other commands: `index` makes existing tars trainable (`scan` reads one tar), `verify` checks a dataset, `repair`
repairs it (`repair_shard` repairs one shard), `describe` and `preview` show its content, and `demo` draws an image
set. `trainable` tests images with the training decoder. The whole project uses `class_match`, `terminal` and `folders`.
"""
