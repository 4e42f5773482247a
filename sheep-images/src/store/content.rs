//! What is in a blob, noted on its file when it came in: the diffID of a layer that was hashed in both forms.
//!
//! A blob that still has its digest still has in it what it had. So where the note is there, who unpacks hashes the blob as it is
//! stored, which is a third of the work; where it is not (a blob that another tool wrote, a file system without extended attributes),
//! what is in it is hashed. The note says nothing by itself: it counts only with a blob that has the digest of its name.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{XattrFlags, fgetxattr, lsetxattr};

use crate::oci::Digest;
use crate::stream::Known;

/// The attribute; its value is the diffID.
const ATTRIBUTE: &str = "user.sheep.diffid";

/// Notes on a blob's file, which is not in its place yet, what was found in it. Where that cannot be, nothing is lost but time.
pub fn note(path: &Path, digest: &Digest, diff_id: &Digest) {
    if digest != diff_id {
        let _ = lsetxattr(path, ATTRIBUTE, diff_id.as_str().as_bytes(), XattrFlags::empty());
    }
}

/// What need not be found out of a layer's blob in the store: what is in it, if that is noted to be what the image says.
pub fn known(blob: &File, diff_id: &Digest) -> Option<Known> {
    let mut value = [0; 128];
    let n = fgetxattr(blob.as_fd(), ATTRIBUTE, &mut value).ok()?;
    (value.get(..n)? == diff_id.as_str().as_bytes()).then(|| Known::Content(diff_id.clone()))
}
