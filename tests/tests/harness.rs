//! A temporary data directory and the commands under test.
