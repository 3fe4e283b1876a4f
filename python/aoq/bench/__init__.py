"""`aoq bench`: aoq's matmuls and models beside every peer that is installed, and beside what the machine can do.

    contender.py     what a contender is, the weights it gets, how wrong it may be
    contenders/      a file per peer: adding one is adding a file
    probe.py         the machine's limits, and whether it is quiet, from libaoq
    worker.py        a contender's process; runs in any Python with torch, aoq need not be installed there
    process.py       this side of it
    measure.py       rounds, in turns: the figures
    models.py        the same of whole models
    machine.py       what it was measured on
    report.py        figures -> tables; roofline.py: a picture

Figures are JSON (`measure.Report`); tables and pictures are made from that alone.
"""
