//! What pax records say of a member.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};

use super::acl;
use super::archive::{Xattr, shown};
use super::pax;

/// So many extended attributes no file has; the kernel lists 64 KiB of names at most, and a list that long takes its time.
const XATTRS_MAX: usize = 1024;

/// Pax records that hold for a member: its own before global ones, the last before earlier ones. An empty value takes
/// back what the header or a global record says.
pub struct Attributes<'a> {
    /// Of the archive so far.
    pub global: &'a BTreeMap<Vec<u8>, Vec<u8>>,
    /// The member's own.
    pub local: &'a [(Vec<u8>, Vec<u8>)],
}

impl Attributes<'_> {
    /// The value of a record.
    pub fn get(&self, key: &[u8]) -> Option<&[u8]> {
        let own = self.local.iter().rev().find(|(other, _)| other == key).map(|(_, value)| value);
        let value = own.or_else(|| self.global.get(key))?;
        (!value.is_empty()).then_some(value)
    }

    /// The value of a record that is a number. Errors where it is none.
    pub fn number(&self, key: &[u8]) -> Result<Option<u64>> {
        let Some(text) = self.get(key) else { return Ok(None) };
        let value = pax::decimal(text);
        value.map(Some).with_context(|| format!("pax record {}", shown(&[key, b"=", text].concat())))
    }

    /// The extended attributes, by name, with what POSIX access control lists become. Errors where there are too many.
    pub fn xattrs(&self) -> Result<Vec<Xattr>> {
        let mut found: BTreeMap<Vec<u8>, Option<Vec<u8>>> = BTreeMap::new();
        // All of them begin so, and stand together.
        let global = self.global.range(b"SCHILY.".to_vec()..).take_while(|(key, _)| key.starts_with(b"SCHILY."));
        for (key, value) in global.chain(self.local.iter().map(|(key, value)| (key, value))) {
            let (name, value) = match &key[..] {
                b"SCHILY.acl.access" => (b"system.posix_acl_access".to_vec(), acl::to_xattr(value)),
                b"SCHILY.acl.default" => (b"system.posix_acl_default".to_vec(), acl::to_xattr(value)),
                key => match key.strip_prefix(b"SCHILY.xattr.") {
                    Some(name) => (pax::xattr_name(name), Some(value.clone())),
                    None => continue,
                },
            };
            found.insert(name, value);
            if found.len() > XATTRS_MAX {
                bail!("more than {XATTRS_MAX} extended attributes are refused");
            }
        }
        Ok(found.into_iter().collect())
    }
}
