//! The pure parsers of archives: pax records, numbers, times, access control lists, sparse maps, header blocks, names.

#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use sheep_images::unpack::attributes::Attributes;
use sheep_images::unpack::header::{self, BLOCK, Header};
use sheep_images::unpack::{acl, pax, resolve, sparse};
use sheep_images_fuzz::{archives, seed};

fuzz_target!(
    init: seed(|| {
        [
            &b"19 path=a\nb=c\xff\0 d\n\n12 size=1=2\n7 uid=\n"[..],
            b"22 GNU.sparse.size=10\n25 GNU.sparse.map=0,5,6,4\n",
            b"25 GNU.sparse.offset=512\n28 GNU.sparse.numbytes=1000\n",
            b"20 mtime=-1.25e\n\n",
            b"user::rwx,user:33:r-x,user:www:r--:34,group::r-x,mask::r-x,other::---",
            b"-12.123456789987",
            b"a/./b//c/../d",
            b"user.a%3Db%25c%41",
        ]
        .into_iter()
        .map(<[u8]>::to_vec)
        .chain(archives().into_iter().map(|archive| archive[..BLOCK].to_vec()))
    }),
    |data: &[u8]| {
        if let Some(records) = pax::records(data) {
            // The records are the header, but for zeros at its end: nothing is left out and nothing made up.
            let mut again: Vec<u8> = Vec::new();
            for (key, value) in &records {
                assert!(!key.is_empty() && !key.contains(&b'='));
                let rest = &data[again.len()..];
                let blank = rest.iter().position(|&b| b == b' ').expect("a length");
                again.extend([&rest[..blank], b" ", key, b"=", value, b"\n"].concat());
            }
            assert!(data.starts_with(&again) && data[again.len()..].iter().all(|&b| b == 0));
            let local: Vec<_> = records.into_iter().map(|(key, value)| (key.to_vec(), value.to_vec())).collect();
            let attributes = Attributes { global: &BTreeMap::new(), local: &local };
            if let Ok(Some(found)) = sparse::of(&attributes)
                && let Some(map) = found.map
            {
                let stored = map.iter().fold(0u64, |sum, (_, length)| sum.wrapping_add(*length));
                if sparse::check_map(&map, found.real_size, stored).is_ok() {
                    assert!(map.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0));
                    assert!(map.last().is_none_or(|(at, length)| at + length <= found.real_size));
                }
            }
            let _ = attributes.xattrs();
        }
        if let Some((seconds, nanos)) = pax::time(data) {
            assert!(nanos < 1_000_000_000);
            let _ = seconds;
        }
        if let Some(number) = pax::decimal(data) {
            assert_eq!(number.to_string(), String::from_utf8_lossy(data).trim_start_matches('0').to_owned()
                + if number == 0 { "0" } else { "" });
        }
        if let Some(value) = acl::to_xattr(data) {
            assert_eq!(value.len() % 8, 4, "a version, and entries of eight bytes");
        }
        let name = pax::xattr_name(data);
        assert!(name.len() <= data.len());
        if let Ok(path) = resolve::clean(data) {
            assert!(!path.starts_with(b"/") && !path.ends_with(b"/") && !path.contains(&0));
            assert!(path.is_empty() || path.split(|&b| b == b'/').all(|part| !matches!(part, b"" | b"." | b"..")));
            assert!(path.is_empty() || resolve::clean(&path).expect("clean") == path);
        }
        let _ = header::number(&data[..data.len().min(12)]);
        if let Some(block) = data.first_chunk::<BLOCK>() {
            let header = Header(block);
            let _ = (header.is_zero(), header.checksum_fits(), header.name(), header.link_name(), header.device());
            let _ = (header.mode(), header.uid(), header.gid(), header.size(), header.mtime());
            let _ = (header.sparse_entries(), header.sparse_real_size(), header::sparse_extension(block));
        }
    }
);
