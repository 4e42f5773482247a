//! Sparse files: GNU tar's pax formats 0.0, 0.1 and 1.0.

use anyhow::{Context, Result, bail};

use super::attributes::Attributes;
use super::header::BLOCK;
use super::pax;

/// Regions of data in one file; no real one has nearly as many.
pub const REGIONS_MAX: usize = 1 << 20;

/// A sparse file as pax records describe it.
pub struct PaxSparse {
    /// Its name, where the header has only a made-up one.
    pub name: Option<Vec<u8>>,
    /// The file's size.
    pub real_size: u64,
    /// Offset and length of each region of data; `None` where the map is in the content (format 1.0).
    pub map: Option<Vec<(u64, u64)>>,
}

/// Whether the records make the member a sparse file, in one of GNU tar's formats.
pub fn of(attributes: &Attributes<'_>) -> Result<Option<PaxSparse>> {
    let name = attributes.get(b"GNU.sparse.name").map(<[u8]>::to_vec);
    if let Some(major) = attributes.number(b"GNU.sparse.major")? {
        let minor = attributes.number(b"GNU.sparse.minor")?.unwrap_or(0);
        if (major, minor) != (1, 0) {
            bail!("format {major}.{minor} is not known");
        }
        let real_size = attributes.number(b"GNU.sparse.realsize")?.context("no GNU.sparse.realsize")?;
        return Ok(Some(PaxSparse { name, real_size, map: None }));
    }
    let Some(real_size) = attributes.number(b"GNU.sparse.size")? else { return Ok(None) };
    let mut numbers = Vec::new();
    if let Some(text) = attributes.get(b"GNU.sparse.map") {
        // 0.1: one list.
        for part in text.split(|&b| b == b',') {
            numbers.push(pax::decimal(part).context("bad number")?);
        }
    } else {
        // 0.0: a record for each number, in order.
        for (key, value) in attributes.local {
            if key == b"GNU.sparse.offset" || key == b"GNU.sparse.numbytes" {
                numbers.push(pax::decimal(value).context("bad number")?);
            }
        }
    }
    if numbers.len() % 2 != 0 || numbers.len() / 2 > REGIONS_MAX {
        bail!("bad number of regions");
    }
    let map = numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
    Ok(Some(PaxSparse { name, real_size, map: Some(map) }))
}

/// Regions must be in order, within the file, and together exactly as long as the content.
pub fn check_map(map: &[(u64, u64)], real_size: u64, stored: u64) -> Result<()> {
    let (mut end, mut total) = (0u64, 0u64);
    for &(at, len) in map {
        if at < end {
            bail!("regions overlap or are out of order");
        }
        if len > 0 && total % BLOCK as u64 != 0 {
            bail!("a region does not begin at a block");
        }
        end = at.checked_add(len).context("a region ends nowhere")?;
        total = total.checked_add(len).context("too long")?;
    }
    if end > real_size {
        bail!("a region ends after the file's {real_size} bytes");
    }
    if total != stored {
        bail!("the regions have {total} bytes together, the content has {stored}");
    }
    Ok(())
}
