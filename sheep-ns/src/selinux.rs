//! SELinux labels: of a container's processes, and of the files in the file systems that are made for it.
//! <https://docs.kernel.org/admin-guide/LSM/SELinux.html>, selinux(8), mount(8) on `context=`

use anyhow::{Result, anyhow};
use rustix::fs::statfs;

/// What is wrong with a label that the kernel calls invalid.
pub const UNKNOWN: &str = "the policy of this host knows no such label";

/// Where its kernel interface is, if it is in force: libselinux goes by the same.
const INTERFACE: &str = "/sys/fs/selinux";
const SELINUX_MAGIC: u32 = 0xf97c_ff8c;

/// A label as config.json gives it, on a host where SELinux is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label(String);

impl Label {
    /// The label that `field` of config.json gives; an empty one is none. Any is an error where SELinux is not in force: the container
    /// would be less confined than it is said to be.
    pub fn new(field: &str, label: Option<&str>) -> Result<Option<Label>> {
        let Some(label) = label.filter(|label| !label.is_empty()) else { return Ok(None) };
        if !statfs(INTERFACE).is_ok_and(|fs| fs.f_type as u32 == SELINUX_MAGIC) {
            return Err(anyhow!("{field} {label}: SELinux is not in force on this host (take it out of config.json)"));
        }
        Ok(Some(Label(label.to_owned())))
    }

    /// As the kernel takes it.
    pub fn text(&self) -> &str {
        &self.0
    }
}
