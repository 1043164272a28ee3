use super::*;
use std::mem::{offset_of, size_of};

/// Sizes from include/uapi/linux/fuse.h; a wrong one is a corrupted conversation with the kernel.
#[test]
fn structs_have_the_kernel_s_sizes() {
    let sizes = [
        ("in_header", size_of::<InHeader>(), 40),
        ("out_header", size_of::<OutHeader>(), 16),
        ("attr", size_of::<Attr>(), 88),
        ("entry_out", size_of::<EntryOut>(), 128),
        ("attr_out", size_of::<AttrOut>(), 104),
        ("init_in", size_of::<InitIn>(), 64),
        ("init_out", size_of::<InitOut>(), 64),
        ("forget_in", size_of::<ForgetIn>(), 8),
        ("batch_forget_in", size_of::<BatchForgetIn>(), 8),
        ("forget_one", size_of::<ForgetOne>(), 16),
        ("getattr_in", size_of::<GetattrIn>(), 16),
        ("setattr_in", size_of::<SetattrIn>(), 88),
        ("mknod_in", size_of::<MknodIn>(), 16),
        ("mkdir_in", size_of::<MkdirIn>(), 8),
        ("rename_in", size_of::<RenameIn>(), 8),
        ("rename2_in", size_of::<Rename2In>(), 16),
        ("link_in", size_of::<LinkIn>(), 8),
        ("open_in", size_of::<OpenIn>(), 8),
        ("create_in", size_of::<CreateIn>(), 16),
        ("open_out", size_of::<OpenOut>(), 16),
        ("create_out", size_of::<CreateOut>(), 144),
        ("release_in", size_of::<ReleaseIn>(), 24),
        ("read_in", size_of::<ReadIn>(), 40),
        ("write_in", size_of::<WriteIn>(), 40),
        ("write_out", size_of::<WriteOut>(), 8),
        ("kstatfs", size_of::<Kstatfs>(), 80),
        ("fsync_in", size_of::<FsyncIn>(), 16),
        ("setxattr_in", size_of::<SetxattrIn>() + size_of::<SetxattrExt>(), 16),
        ("getxattr_in", size_of::<GetxattrIn>(), 8),
        ("getxattr_out", size_of::<GetxattrOut>(), 8),
        ("fallocate_in", size_of::<FallocateIn>(), 32),
        ("lseek_in", size_of::<LseekIn>(), 24),
        ("lseek_out", size_of::<LseekOut>(), 8),
        ("copy_file_range_in", size_of::<CopyFileRangeIn>(), 56),
        ("ioctl_in", size_of::<IoctlIn>(), 32),
        ("ioctl_out", size_of::<IoctlOut>(), 16),
        ("statx_in", size_of::<StatxIn>(), 24),
        ("sx_time", size_of::<SxTime>(), 16),
        ("statx", size_of::<Statx>(), 256),
        ("statx_out", size_of::<StatxOut>(), 288),
        ("dirent", size_of::<Dirent>(), 24),
        ("direntplus", size_of::<Direntplus>(), 152),
        ("notify_inval_inode_out", size_of::<InvalInodeOut>(), 24),
        ("notify_inval_entry_out", size_of::<InvalEntryOut>(), 16),
    ];
    for (name, ours, kernel) in sizes {
        assert_eq!(ours, kernel, "fuse_{name}");
    }
}

#[test]
fn fields_are_where_the_kernel_puts_them() {
    assert_eq!(offset_of!(InHeader, total_extlen), 36);
    assert_eq!(offset_of!(Attr, mode), 60);
    assert_eq!(offset_of!(SetattrIn, mode), 68);
    assert_eq!(offset_of!(SetattrIn, uid), 76);
    assert_eq!(offset_of!(InitOut, flags2), 32);
    assert_eq!(offset_of!(Statx, atime), 64);
    assert_eq!(offset_of!(Statx, rdev_major), 128);
    assert_eq!(offset_of!(StatxOut, stat), 32);
}

#[test]
fn mutating_replies_fit_the_pending_reply() {
    assert!(size_of::<CreateOut>() <= crate::ports::REPLY_BODY_MAX);
}
