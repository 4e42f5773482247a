//! Memory for a program that lives two milliseconds: handed out from one block, without a system call for each page.
//!
//! musl's allocator maps and unmaps pages as it goes, some hundred times for one command line; that is a tenth of a
//! start. What does not fit into the block, as in a process that stays to serve a terminal, comes from the system's
//! allocator as usual, so that nothing grows without end.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::hint::spin_loop;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

const SIZE: usize = 1024 * 1024;
/// Pieces are multiples of this, and begin at one.
const UNIT: usize = 16;
/// Up to this size there is a class for each multiple of [`UNIT`], and from there on four for each power of two.
const FINE: usize = 512;
const FINE_CLASSES: usize = FINE / UNIT;
/// The greatest piece that is used again, when it is given back before others.
const MOST: usize = 64 * 1024;
const CLASSES: usize = FINE_CLASSES + 4 * (MOST / FINE).ilog2() as usize;

/// The allocator; `main.rs` installs it.
#[derive(Debug)]
pub struct Arena {
    /// Page-aligned, in zeroed memory that costs nothing until it is touched.
    block: UnsafeCell<Block>,
    books: UnsafeCell<Books>,
    /// Held for some instructions, by who looks into the books.
    taken: AtomicBool,
}

#[repr(align(4096))]
#[derive(Debug)]
#[expect(dead_code, reason = "it is only reached by address")]
struct Block([u8; SIZE]);

#[derive(Debug)]
struct Books {
    /// Offset of what was never handed out.
    next: usize,
    /// For each class the end of the piece that was given back last; in it is that of the one before. 0 is none, so that all of an
    /// empty arena is zeroes, which take no room in the program's file.
    free: [u32; CLASSES],
}

// SAFETY: the block is only touched through the pointers handed out, which never overlap, and in pieces that were given back; these and
// the books only by who has `taken`.
unsafe impl Sync for Arena {}

/// The class of a size, and the size of its pieces. Greater ones than [`MOST`] have none, and only their own size.
fn class(size: usize) -> (Option<usize>, usize) {
    let size = size.max(1).next_multiple_of(UNIT);
    if size <= FINE {
        return (Some(size / UNIT - 1), size);
    }
    if size > MOST {
        return (None, size);
    }
    // FINE < size <= MOST: the power of two below it, and which quarter of the way to the next.
    let power = (size - 1).ilog2();
    let quarter = 1 << (power - 2);
    let pieces = size.next_multiple_of(quarter);
    let quarters = pieces / quarter - 5;
    (Some(FINE_CLASSES + 4 * (power - FINE.ilog2()) as usize + quarters), pieces)
}

impl Arena {
    /// An empty one.
    #[expect(clippy::new_without_default, reason = "a static needs a const fn")]
    pub const fn new() -> Arena {
        Arena {
            block: UnsafeCell::new(Block([0; SIZE])),
            books: UnsafeCell::new(Books { next: 0, free: [0; CLASSES] }),
            taken: AtomicBool::new(false),
        }
    }

    /// Has the kernel give the block's first pages at once, and not one by one as they are touched. Where it cannot (before Linux
    /// 5.14) nothing is lost.
    pub fn populate(&self, bytes: usize) {
        // SAFETY: within the block, whose content stays.
        unsafe { libc::madvise(self.block.get().cast(), bytes.min(SIZE), libc::MADV_POPULATE_WRITE) };
    }

    /// The offset of a pointer in the block; `None` when it came from the system's allocator.
    fn offset(&self, pointer: *mut u8) -> Option<usize> {
        let offset = pointer.addr().wrapping_sub(self.block.get().addr());
        (offset < SIZE).then_some(offset)
    }

    fn at(&self, offset: usize) -> *mut u8 {
        self.block.get().cast::<u8>().wrapping_add(offset)
    }

    /// Gives the books to one at a time. Nothing in here waits for anything else.
    fn with_books<T>(&self, look: impl FnOnce(&mut Books) -> T) -> T {
        while self.taken.swap(true, Ordering::Acquire) {
            spin_loop();
        }
        // SAFETY: nobody else is here.
        let result = look(unsafe { &mut *self.books.get() });
        self.taken.store(false, Ordering::Release);
        result
    }

    // Not a part of whoever allocates: the program would be a fifth larger, all of which is to be mapped.
    #[inline(never)]
    fn take(&self, layout: Layout) -> Option<usize> {
        // The block is aligned to a page; so is what is in it up to that.
        if layout.align() > 4096 {
            return None;
        }
        let (class, size) = class(layout.size());
        self.with_books(|books| {
            if layout.align() <= UNIT
                && let Some(head) = class.and_then(|class| books.free.get_mut(class))
                && let Some(offset) = (*head as usize).checked_sub(size)
            {
                // SAFETY: a piece that was given back, at least a unit long; who gave it back wrote this.
                *head = unsafe { self.at(offset).cast::<u32>().read() };
                return Some(offset);
            }
            let start = books.next.checked_next_multiple_of(layout.align().max(UNIT))?;
            let end = start.checked_add(size).filter(|end| *end <= SIZE)?;
            books.next = end;
            Some(start)
        })
    }

    #[inline(never)]
    fn give_back(&self, start: usize, size: usize) {
        let (class, size) = class(size);
        self.with_books(|books| {
            if start + size == books.next {
                books.next = start;
            } else if let Some(head) = class.and_then(|class| books.free.get_mut(class)) {
                // SAFETY: the piece is nobody's any more, at least a unit long, and aligned to one.
                unsafe { self.at(start).cast::<u32>().write(*head) };
                *head = (start + size) as u32;
            }
        });
    }

    /// Makes the last piece greater or smaller where it is, and any that has room for it.
    #[inline(never)]
    fn resize(&self, start: usize, old: usize, new: usize) -> bool {
        let (old, new) = (class(old).1, class(new).1);
        old == new
            || self.with_books(|books| {
                let end = start.checked_add(new).filter(|end| *end <= SIZE);
                match end {
                    Some(end) if start + old == books.next => {
                        books.next = end;
                        true
                    }
                    _ => false,
                }
            })
    }
}

// SAFETY: memory from the block is aligned as asked, within the block, and not handed out again until it is given back;
// anything else is the system allocator's business.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match self.take(layout) {
            Some(start) => self.at(start),
            // SAFETY: the caller's promises are passed on.
            None => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        match self.offset(pointer) {
            Some(start) => self.give_back(start, layout.size()),
            // SAFETY: not from the block, so it came from the system's allocator, with this layout.
            None => unsafe { System.dealloc(pointer, layout) },
        }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let Some(start) = self.offset(pointer) else {
            // SAFETY: not from the block, so it came from the system's allocator, with this layout.
            return unsafe { System.realloc(pointer, layout, size) };
        };
        if self.resize(start, layout.size(), size) {
            return pointer;
        }
        // SAFETY: the caller promises a size that makes a valid layout; old and new do not overlap, both are at least as long as what
        // is copied.
        unsafe {
            let new = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !new.is_null() {
                ptr::copy_nonoverlapping(pointer, new, layout.size().min(size));
                self.dealloc(pointer, layout);
            }
            new
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(size: usize, align: usize) -> Layout {
        Layout::from_size_align(size, align).unwrap()
    }

    #[test]
    fn classes_have_room_for_their_sizes() {
        let mut before = None;
        for size in 0..=MOST {
            let (at, pieces) = class(size);
            assert!(pieces >= size.max(1) && pieces % UNIT == 0 && pieces <= size.max(UNIT) * 5 / 4 + UNIT, "{size}");
            // One class has one size, and they follow one another.
            let at = at.unwrap();
            assert_eq!(class(pieces), (Some(at), pieces), "{size}");
            assert!(before.is_none_or(|before| at == before || at == before + 1), "{size}");
            before = Some(at);
        }
        assert_eq!((before, class(MOST + 1).0), (Some(CLASSES - 1), None));
    }

    #[test]
    fn the_last_piece_moves_its_end_and_the_rest_is_the_systems() {
        // Too big for a thread's stack.
        static ARENA: Arena = Arena::new();
        let arena = &ARENA;
        // SAFETY: every pointer is used within its layout and given back once.
        unsafe {
            let a = arena.alloc(layout(3, 1));
            let b = arena.alloc(layout(64, 64));
            assert!(b.addr() >= a.addr() + 3 && b.addr().is_multiple_of(64));
            b.write_bytes(7, 64);
            let c = arena.realloc(b, layout(64, 64), 128);
            assert_eq!(b, c, "the last piece grows where it is");
            a.write_bytes(1, 3);
            let d = arena.realloc(a, layout(3, 1), 20);
            assert!(d != a && *d == 1 && *c == 7);
            assert_eq!(arena.alloc(layout(8, 8)), a, "what was given back is used again");
            arena.dealloc(d, layout(20, 1));
            assert_eq!(arena.alloc(layout(500, 1)), d, "the last piece is free again for any size");
            let big = arena.alloc(layout(SIZE + 1, 1));
            assert!(!big.is_null() && arena.offset(big).is_none());
            let bigger = arena.realloc(big, layout(SIZE + 1, 1), 2 * SIZE);
            arena.dealloc(bigger, layout(2 * SIZE, 1));
            let full = arena.realloc(c, layout(128, 64), SIZE);
            assert!(arena.offset(full).is_none() && *full == 7);
            arena.dealloc(full, layout(SIZE, 64));
        }
    }

    /// Threads take pieces, write themselves into them, and find it there when they give them back.
    #[test]
    fn pieces_do_not_overlap() {
        static ARENA: Arena = Arena::new();
        std::thread::scope(|scope| {
            for thread in 0..4u8 {
                scope.spawn(move || {
                    let mut random = 12_345u32 + u32::from(thread);
                    let mut next = |below: u32| {
                        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        (random >> 8) % below
                    };
                    let mut held: Vec<(*mut u8, Layout, u8)> = Vec::new();
                    // SAFETY: as above.
                    unsafe {
                        for round in 0..20_000u32 {
                            let mark = thread << 6 | (round & 63) as u8;
                            let bits = 1 + next(12);
                            let size = 1 + next(1 << bits) as usize;
                            let whole =
                                |pointer: *mut u8, size, mark| (0..size).all(|at| pointer.add(at).read() == mark);
                            match next(3) {
                                0 if !held.is_empty() => {
                                    let (pointer, of, mark) = held.swap_remove(next(held.len() as u32) as usize);
                                    assert!(whole(pointer, of.size(), mark));
                                    ARENA.dealloc(pointer, of);
                                }
                                1 if !held.is_empty() => {
                                    let (pointer, of, old) = held.swap_remove(next(held.len() as u32) as usize);
                                    let pointer = ARENA.realloc(pointer, of, size);
                                    assert!(whole(pointer, size.min(of.size()), old));
                                    pointer.write_bytes(mark, size);
                                    held.push((pointer, layout(size, of.align()), mark));
                                }
                                _ => {
                                    let of = layout(size, 1 << next(8));
                                    let pointer = ARENA.alloc(of);
                                    assert_eq!(pointer.addr() % of.align(), 0);
                                    pointer.write_bytes(mark, size);
                                    held.push((pointer, of, mark));
                                }
                            }
                        }
                        for (pointer, of, _) in held {
                            ARENA.dealloc(pointer, of);
                        }
                    }
                });
            }
        });
    }
}
