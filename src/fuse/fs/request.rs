//! Taking a request apart.

use super::{Stop, errno};
use crate::fuse::abi::{self, ExtHeader, InHeader};
use crate::proto::FileId;
use zerocopy::FromBytes;

/// One request: its head, and what of its arguments was not read yet.
pub(super) struct Request<'a> {
    pub(super) header: InHeader,
    args: &'a [u8],
    extensions: &'a [u8],
}

impl<'a> Request<'a> {
    /// `None`: shorter than it says.
    pub(super) fn parse(buf: &'a [u8]) -> Option<Self> {
        let (header, rest) = InHeader::read_from_prefix(buf).ok()?;
        let len = (header.len as usize).checked_sub(size_of::<InHeader>())?;
        let all = rest.get(..len)?;
        let (args, extensions) = all.split_at(len.checked_sub(usize::from(header.total_extlen) * 8)?);
        Some(Self { header, args, extensions })
    }

    /// The object the request is about.
    pub(super) const fn id(&self) -> FileId {
        FileId(self.header.nodeid)
    }

    /// The next fixed part.
    pub(super) fn arg<T: FromBytes>(&mut self) -> Result<T, Stop> {
        let (value, rest) = T::read_from_prefix(self.args).map_err(|_| errno(libc::EINVAL))?;
        self.args = rest;
        Ok(value)
    }

    /// The next NUL-terminated name.
    pub(super) fn name(&mut self) -> Result<&'a [u8], Stop> {
        let end = self.args.iter().position(|b| *b == 0).ok_or(errno(libc::EINVAL))?;
        let name = &self.args[..end];
        self.args = &self.args[end + 1..];
        Ok(name)
    }

    /// The next `len` bytes.
    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8], Stop> {
        let bytes = self.args.get(..len).ok_or(errno(libc::EINVAL))?;
        self.args = &self.args[len..];
        Ok(bytes)
    }

    /// The caller's supplementary groups that matter here: the kernel sends the parent directory's
    /// group if the caller is in it.
    pub(super) fn groups(&self) -> Vec<u32> {
        let mut rest = self.extensions;
        while let Ok((head, body)) = ExtHeader::read_from_prefix(rest) {
            let Some(body_len) = (head.size as usize).checked_sub(size_of::<ExtHeader>()) else { break };
            let Some(mine) = body.get(..body_len) else { break };
            if head.kind == abi::EXT_GROUPS
                && let Ok((count, list)) = u32::read_from_prefix(mine)
            {
                let groups = list.chunks_exact(4).filter_map(|c| u32::read_from_bytes(c).ok());
                return groups.take(count as usize).collect();
            }
            rest = &body[body_len..];
        }
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::IntoBytes;

    fn request(total_extlen: u16, body: &[u8]) -> Vec<u8> {
        let len = (size_of::<InHeader>() + body.len()) as u32;
        let header = InHeader { len, total_extlen, ..InHeader::default() };
        [header.as_bytes(), body].concat()
    }

    #[test]
    fn names_and_groups_are_found() {
        let ext = [16u32, abi::EXT_GROUPS, 1, 77];
        let buf = request(2, &[b"abc\0", ext.as_bytes()].concat());
        let mut r = Request::parse(&buf).expect("parsed");
        assert_eq!(r.groups(), [77]);
        assert_eq!(r.name(), Ok(&b"abc"[..]));
        assert_eq!(r.name(), Err(errno(libc::EINVAL)));
    }

    #[test]
    fn nonsense_is_refused_not_believed() {
        assert!(Request::parse(&[0; 39]).is_none());
        assert!(Request::parse(&request(9, b"short")).is_none());
        let mut truncated = request(0, b"0123456789");
        truncated.truncate(45);
        assert!(Request::parse(&truncated).is_none());
        let liar = request(1, &[0xff; 8]);
        assert!(Request::parse(&liar).expect("parsed").groups().is_empty());
        let mut r = liar;
        r[36] = 0;
        assert_eq!(Request::parse(&r).expect("parsed").arg::<[u64; 2]>(), Err(errno(libc::EINVAL)));
    }
}
