//! Nothing but tests and the benchmark: `tests/it` runs the real binaries end to end, `bench` measures them.
