// Package signed says whether an image is what somebody has signed, block by block as it is read: who mounts a signed
// image of 20 GB need not read it first, and what is changed in it later, however that was done, is found when it is read.
//
// # Form
//
// A signature is a file beside the image:
//
//	squire image 1
//	size 20401094656
//	block 131072
//	hashes 5feceb66ffc86f38d952786c6d696c79c2dbc239dd4e91b46729d73a27fb57e9
//	-----BEGIN SSH SIGNATURE-----
//	…
//	-----END SSH SIGNATURE-----
//	the SHA-256 of each block of the image's file, 32 bytes each
//
// The first four lines are the Statement: what is signed, in the form of "ssh-keygen -Y sign" (OpenSSH,
// PROTOCOL.sshsig), with a key of one of KeyTypes and the namespace Namespace. hashes is the SHA-256 of the list, which has a hash for
// each block of the file, whose last one may be shorter. Size and length of blocks are signed as well, so one list means
// one file.
package signed
