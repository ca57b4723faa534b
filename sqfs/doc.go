// Package sqfs reads squashfs 4.0 images: what the bytes of an image mean.
//
// There are two doors to an image. The inode door is for servers: [Image.Root],
// [Image.Inode], [Image.Lookup], [Image.Dirents], [Image.File] and
// [Image.ReadBlock] work on inode references, take and return values, and allocate
// nothing. The path door is for people and tools: an *[Image] is an [fs.FS] with
// [fs.StatFS], [fs.ReadDirFS], [fs.ReadFileFS] and [fs.ReadLinkFS]. The path door
// is written with the inode door only. From one to the other lead [Image.Resolve],
// for paths of any bytes, and the Sys method of [fs.FileInfo], an *[Inode].
//
// # Scope
//
// All inode types, fragments, holes, hard links, extended attributes, the directory
// index and the export table are read; so are streamed images (magic HSQS), whose
// superblock stands at the end; and all compressors: gzip, zstd, lz4, lzo, xz and
// lzma. Squashfs before 4.0, and big-endian images, are refused with [ErrVersion].
//
// Images are not trusted. A damaged or hostile one gives an error that says what is
// wrong and where ([FormatError], matched by [ErrCorrupt]), for the path that is
// affected only; it never causes a panic, an endless loop or memory out of
// proportion to the image. Bytes that the format does not protect by a checksum can
// still be changed unnoticed: of the compressors only gzip and xz carry one.
//
// # Costs
//
// Metadata is decoded once and kept, immutable, in a table without locks, up to
// [Options.MetadataCache] bytes; beside it up to 4 MiB of places in long directories
// and 1.5 MiB of places in long files, so that a lookup, or going on in the middle,
// takes no longer in a directory of a million entries than in one of a thousand. File
// data is never cached here: [Image.ReadBlock] reads and expands one block on each
// call. Once the metadata concerned is cached, Inode, Lookup, Dirents, AppendLink,
// AppendXattr, File, Extent, Extents and ReadBlock allocate nothing.
//
// Programs with many images share a [Budget] of metadata among them, and may have
// blocks expanded in turns ([Image.ReadBlockInTurn]).
//
// All methods of Image may be called by any number of goroutines at once. The
// package starts no goroutine, writes no log and keeps no global state but pools of
// buffers and decoders.
package sqfs
