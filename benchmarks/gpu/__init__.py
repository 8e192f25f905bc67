"""`python -m benchmarks.gpu`: what a GPU must show, in stages that fail alone. docs/gpu.md says how to run and read it.

registry.py   the stages, part by part          run.py      a process a stage, its limit, its result on disk
stage.py      what a stage is, and its report   expected.py bounds and goals by device, and the verdicts
stages.py     those asked for, part by part     data.py     the image sets that the stages need
table.py      the table at the end
"""
