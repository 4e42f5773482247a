//! Archives by hand, also such as no tar program would make.

/// An archive being made.
#[derive(Clone, Default)]
pub struct Maker(pub Vec<u8>);

/// A header block that can still be changed.
#[derive(Clone)]
pub struct Block(pub [u8; 512]);

impl Block {
    pub fn new(name: &[u8], kind: u8) -> Self {
        let mut block = Block([0; 512]);
        block.put(0, &name[..name.len().min(100)]);
        block.put(100, if kind == b'5' { b"0000755\0" } else { b"0000644\0" });
        block.put(108, b"0000000\0");
        block.put(116, b"0000000\0");
        block.put(136, b"00000000001\0");
        block.put(257, b"ustar\x0000");
        block.0[156] = kind;
        block.size(0)
    }

    pub fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub fn with(mut self, at: usize, bytes: &[u8]) -> Self {
        self.put(at, bytes);
        self
    }

    pub fn size(self, size: usize) -> Self {
        self.with(124, format!("{size:011o}\0").as_bytes())
    }

    pub fn link(self, target: &[u8]) -> Self {
        self.with(157, target)
    }

    /// Fills in the checksum.
    pub fn summed(mut self) -> [u8; 512] {
        self.put(148, b"        ");
        let sum: u32 = self.0.iter().map(|&b| u32::from(b)).sum();
        self.put(148, format!("{sum:06o}\0 ").as_bytes());
        self.0
    }
}

impl Maker {
    pub fn block(mut self, block: Block) -> Self {
        self.0.extend(block.summed());
        self
    }

    /// Content, padded to whole blocks.
    pub fn content(mut self, content: &[u8]) -> Self {
        self.0.extend(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn file(self, name: &[u8], content: &[u8]) -> Self {
        self.block(Block::new(name, b'0').size(content.len())).content(content)
    }

    pub fn dir(self, name: &[u8]) -> Self {
        self.block(Block::new(name, b'5'))
    }

    pub fn symlink(self, name: &[u8], target: &[u8]) -> Self {
        self.block(Block::new(name, b'2').link(target))
    }

    pub fn hard(self, name: &[u8], target: &[u8]) -> Self {
        self.block(Block::new(name, b'1').link(target))
    }

    /// A pax header for the next member, or with `kind` b'g' for all that follow.
    pub fn pax(self, kind: u8, records: &[(&[u8], &[u8])]) -> Self {
        let data: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
        self.raw_pax(kind, &data)
    }

    pub fn raw_pax(self, kind: u8, data: &[u8]) -> Self {
        self.block(Block::new(b"pax", kind).size(data.len())).content(data)
    }

    /// GNU's long name ('L') or long link ('K') for the next member.
    pub fn long(self, kind: u8, name: &[u8]) -> Self {
        self.block(Block::new(b"././@LongLink", kind).size(name.len() + 1)).content(&[name, b"\0"].concat())
    }

    /// With the end mark.
    pub fn end(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }
}

pub fn tar() -> Maker {
    Maker::default()
}

fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let body = key.len() + value.len() + 3;
    let mut length = body + 1;
    while length != body + length.to_string().len() {
        length = body + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}
