//! What pax records say of a member.

use anyhow::{Context, Result};

use super::acl;
use super::archive::{Xattr, shown};
use super::pax;

/// Pax records that hold for a member: its own before global ones, the last before earlier ones. An empty value takes
/// back what the header or a global record says.
pub struct Attributes<'a> {
    /// Of the archive so far.
    pub global: &'a [(Vec<u8>, Vec<u8>)],
    /// The member's own.
    pub local: &'a [(Vec<u8>, Vec<u8>)],
}

impl Attributes<'_> {
    /// The value of a record.
    pub fn get(&self, key: &[u8]) -> Option<&[u8]> {
        let find = |list: &'_ [(Vec<u8>, Vec<u8>)]| list.iter().rposition(|(k, _)| k == key);
        let value = match (find(self.local), find(self.global)) {
            (Some(at), _) => &self.local[at].1,
            (None, Some(at)) => &self.global[at].1,
            (None, None) => return None,
        };
        (!value.is_empty()).then_some(value)
    }

    /// The value of a record that is a number. Errors where it is none.
    pub fn number(&self, key: &[u8]) -> Result<Option<u64>> {
        let Some(text) = self.get(key) else { return Ok(None) };
        let value = pax::decimal(text);
        value.map(Some).with_context(|| format!("pax record {}", shown(&[key, b"=", text].concat())))
    }

    /// The extended attributes, with what POSIX access control lists become.
    pub fn xattrs(&self) -> Vec<Xattr> {
        let mut found: Vec<Xattr> = Vec::new();
        for (key, value) in self.global.iter().chain(self.local) {
            let (name, value) = match &key[..] {
                b"SCHILY.acl.access" => (b"system.posix_acl_access".to_vec(), acl::to_xattr(value)),
                b"SCHILY.acl.default" => (b"system.posix_acl_default".to_vec(), acl::to_xattr(value)),
                key => match key.strip_prefix(b"SCHILY.xattr.") {
                    Some(name) => (pax::xattr_name(name), Some(value.clone())),
                    None => continue,
                },
            };
            found.retain(|(other, _)| *other != name);
            found.push((name, value));
        }
        found
    }
}
