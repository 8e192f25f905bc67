"""`python -m benchmarks.gpu`: check and measure a GPU in independent stages. docs/gpu.md explains how.

registry.py   the stages, part by part     run.py      runs each stage in a process, with a time limit
stage.py      the input of a stage         report.py   the findings of a stage: rows, PART.json, the table
compare.py, kernels.py, example.py, runs.py            the work of the stages, on the image sets of data.py
"""
