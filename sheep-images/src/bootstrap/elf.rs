//! What an ELF file says it needs.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use elf::ElfStream;
use elf::abi;
use elf::endian::AnyEndian;
use elf::file::Class;

/// Tables of strings are read whole; no real one is nearly as long.
const STRINGS_MAX: u64 = 64 << 20;

/// What an ELF file needs, and what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elf {
    /// Class and machine: libraries of another kind are passed over in the search.
    pub kind: Kind,
    /// The loader (PT_INTERP); none for a library or a static program.
    pub interpreter: Option<Vec<u8>>,
    /// Names of libraries (DT_NEEDED).
    pub needed: Vec<Vec<u8>>,
    /// The name it goes by (DT_SONAME).
    pub soname: Option<Vec<u8>>,
    /// DT_RPATH, split.
    pub rpath: Vec<Vec<u8>>,
    /// DT_RUNPATH, split.
    pub runpath: Option<Vec<Vec<u8>>>,
}

/// What machine a file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind {
    is_64: bool,
    machine: u16,
}

/// Reads an ELF file's needs.
pub fn read(path: &Path) -> Result<Elf> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    parse(&file).with_context(|| format!("{}: not a usable ELF file", path.display()))
}

fn parse(file: &File) -> Result<Elf> {
    let damaged = |e: elf::ParseError| anyhow!("{e}");
    let stream = ElfStream::<AnyEndian, _>::open_stream(file).map_err(damaged)?;
    let (class, endian) = (stream.ehdr.class, stream.ehdr.endianness);
    let kind = Kind { is_64: class == Class::ELF64, machine: stream.ehdr.e_machine };
    let mut found = Elf { kind, interpreter: None, needed: Vec::new(), soname: None, rpath: Vec::new(), runpath: None };
    let segments = stream.segments().clone();
    let read = |at: u64, len: u64| -> Result<Vec<u8>> {
        if len > STRINGS_MAX {
            bail!("a table of {len} bytes");
        }
        let mut bytes = vec![0; usize::try_from(len)?];
        file.read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    };
    if let Some(segment) = segments.iter().find(|s| s.p_type == abi::PT_INTERP) {
        found.interpreter = Some(until_nul(&read(segment.p_offset, segment.p_filesz)?).to_vec());
    }
    let Some(dynamic) = segments.iter().find(|s| s.p_type == abi::PT_DYNAMIC) else { return Ok(found) };
    let table = read(dynamic.p_offset, dynamic.p_filesz)?;
    let entries: Vec<(i64, u64)> = elf::dynamic::DynamicTable::new(endian, class, &table)
        .iter()
        .map(|entry| (entry.d_tag, entry.d_val()))
        .take_while(|(tag, _)| *tag != abi::DT_NULL)
        .collect();
    let value = |tag| entries.iter().find(|(t, _)| *t == tag).map(|(_, value)| *value);
    let Some(address) = value(abi::DT_STRTAB) else { return Ok(found) };
    // The table is given by its address in memory; the segment that is loaded there tells where it is in the file.
    let segment = segments
        .iter()
        .find(|s| s.p_type == abi::PT_LOAD && address.checked_sub(s.p_vaddr).is_some_and(|off| off < s.p_filesz))
        .context("its string table is in no segment")?;
    let strings = read(address - segment.p_vaddr + segment.p_offset, value(abi::DT_STRSZ).context("no DT_STRSZ")?)?;
    let string = |at: u64| -> Result<Vec<u8>> {
        let tail = usize::try_from(at).ok().and_then(|at| strings.get(at..)).context("a string outside the table")?;
        Ok(until_nul(tail).to_vec())
    };
    for &(tag, at) in &entries {
        match tag {
            abi::DT_NEEDED => found.needed.push(string(at)?),
            abi::DT_SONAME => found.soname = Some(string(at)?),
            abi::DT_RPATH => found.rpath = split(&string(at)?),
            abi::DT_RUNPATH => found.runpath = Some(split(&string(at)?)),
            _ => (),
        }
    }
    Ok(found)
}

fn split(list: &[u8]) -> Vec<Vec<u8>> {
    list.split(|&b| b == b':').filter(|part| !part.is_empty()).map(<[u8]>::to_vec).collect()
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_program_and_rubbish() {
        let me = read(&std::env::current_exe().unwrap()).unwrap();
        let shell = read(&std::fs::canonicalize("/bin/sh").unwrap()).unwrap();
        assert_eq!(me.kind, shell.kind);
        let file = std::env::temp_dir().join(format!("sheep-elf-{}", sheep_overlay::state::new_id().unwrap()));
        let whole = std::fs::read("/bin/true").unwrap();
        for end in [0, 4, 40, 64, 500, 2000] {
            std::fs::write(&file, &whole[..end]).unwrap();
            assert!(read(&file).is_err(), "{end}");
        }
        // Nothing in a damaged file may bring the reader down.
        for at in (0..2000).step_by(7) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0xff;
            std::fs::write(&file, bytes).unwrap();
            let _ = read(&file);
        }
        std::fs::remove_file(file).unwrap();
    }
}
