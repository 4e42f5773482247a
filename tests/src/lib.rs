//! End-to-end tests of the four binaries; everything is under `tests/`.
