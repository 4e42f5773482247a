//! An ordinary user in a group that was delegated to that user: <https://docs.kernel.org/admin-guide/cgroup-v2.html>, "Delegation".
