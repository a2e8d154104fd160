"""Past the machine at hand: a cost model fitted to what was measured, and a simulation of many replicas.

`cost` counts bytes and operations of each stage, `fit` finds a machine's rates from committed measurements,
`simulation` lets replicas, caches and routing run against one another in simulated time.
"""
