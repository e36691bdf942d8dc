"""The bench: labkit's fast path beside the tools that people use today, in one run on one machine.

``python -m bench`` (or ``./task bench``) runs every comparison; docs/bench.md tells the method. One module per family
of comparisons (:mod:`bench.ring`, :mod:`bench.maps`, :mod:`bench.sched`, :mod:`bench.cost`); :mod:`bench.measure` holds
repetition and statistics, :mod:`bench.peers` the other tools, :mod:`bench.kernel` what is put into the kernel to be read.
"""
