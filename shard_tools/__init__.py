"""Images → shards, and looking at shards: what `python -m shard_tools` does. `commands/` is its command line.

Packing, in the order of its steps:

    writer      `pack`: the whole of it, and `PackOptions`, all that it may be told
    sources/    where images come from: a module a kind, which lists images and their classes; `SOURCES` has them all
    listing     the list on disk, with labels: what `subset` chooses, called as `classes` says; `records` reads it back
    execute     runs the shards that are missing on `workers`: processes, a thread, a Dask cluster
    shard       `write_shard`: one shard; `encode` checks and makes its JPEGs, `tarwriter` and `tarindex` write them
    part        what came of one shard, until all are there; `resume` knows what an interrupted run has left
    rejected, duplicates, report    what people should know afterwards; `upload` takes all of it to a URL

Beside it: `index` makes tars of others trainable (`scan` reads one), `verify` checks a dataset, `repair` mends it
(`repair_shard` one shard), `trainable` asks the decoder that trains, `describe` and `preview` show what is there,
`demo` draws an image set. `class_match`, `terminal` and `folders` serve the whole project.
"""
