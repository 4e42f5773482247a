//! Names of images: a name that was read is read again from how it is written, and reads the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sheep_images::reference::{Name, Reference};
use sheep_images::store::familiar;
use sheep_images_fuzz::seed;

fuzz_target!(
    init: seed(|| {
        [
            "minimal:v1",
            "docker.io/library/minimal",
            "index.docker.io/me/tool:1.0-rc_1",
            "localhost:5000/a/b/c:T",
            "Host/tool",
            "f/a__b.c-d--e",
            "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
            "me@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
            "docker.io/library/a/b",
            "library/library/x",
            "abc123",
        ]
        .map(|text| text.as_bytes().to_vec())
    }),
    |data: &[u8]| {
        let Ok(text) = std::str::from_utf8(data) else { return };
        if let Ok(name) = Name::parse(text) {
            let written = name.familiar();
            assert_eq!(Name::parse(&written).expect("what is written is read"), name, "{written}");
            assert_eq!(familiar(text), written);
            assert!(written.bytes().all(|b| b.is_ascii_graphic()), "{written:?}");
            assert!(written.split(['/', ':']).all(|part| !matches!(part, "." | ".." | "")), "{written:?}");
        }
        match Reference::parse(text) {
            Ok(Reference::Digest(digest)) => {
                assert!(digest.hex().len() == 64 && digest.hex().bytes().all(|b| b.is_ascii_hexdigit()));
            }
            Ok(Reference::Prefix { hex, .. }) => assert!(hex.bytes().all(|b| b.is_ascii_hexdigit())),
            Ok(Reference::Name(name)) => assert_eq!(Name::parse(text).ok(), Some(name)),
            Err(_) => {}
        }
    }
);
