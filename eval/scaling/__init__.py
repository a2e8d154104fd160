"""What a stage costs on a machine: `cost` counts bytes and operations, `fit` finds rates from what was measured."""
