"""`python -m benchmarks.gpu`: what a GPU must show, in stages that fail alone. docs/gpu.md says how to run and read it.

registry.py   the stages, part by part          run.py      a process a stage, its limit, its result on disk
stage.py      what a stage is given             report.py   what a stage has found: rows, PART.json, the table
compare.py, kernels.py, example.py, runs.py     what the stages do, on the image sets of data.py
"""
