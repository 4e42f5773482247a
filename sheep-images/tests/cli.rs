//! The real binary against real archives, the real kernel and other tools.

#[path = "cli/harness.rs"]
mod harness;
#[path = "cli/image_maker.rs"]
mod image_maker;
#[path = "cli/maker.rs"]
mod maker;
#[path = "cli/servers.rs"]
mod servers;

#[path = "cli/bootstrap.rs"]
mod bootstrap;
#[path = "cli/broken.rs"]
mod broken;
#[path = "cli/care.rs"]
mod care;
#[path = "cli/containerd.rs"]
mod containerd;
#[path = "cli/crash.rs"]
mod crash;
#[path = "cli/directory.rs"]
mod directory;
#[path = "cli/export.rs"]
mod export;
#[path = "cli/formats.rs"]
mod formats;
#[path = "cli/hostile.rs"]
mod hostile;
#[path = "cli/hostile_documents.rs"]
mod hostile_documents;
#[path = "cli/hostile_images.rs"]
mod hostile_images;
#[path = "cli/images.rs"]
mod images;
#[path = "cli/interop.rs"]
mod interop;
#[path = "cli/layers.rs"]
mod layers;
#[path = "cli/progress.rs"]
mod progress;
#[path = "cli/push.rs"]
mod push;
#[path = "cli/registry.rs"]
mod registry;
#[path = "cli/send.rs"]
mod send;
#[path = "cli/space.rs"]
mod space;
#[path = "cli/store.rs"]
mod store;
#[path = "cli/to.rs"]
mod to;
#[path = "cli/user.rs"]
mod user;
#[path = "cli/verify.rs"]
mod verify;
