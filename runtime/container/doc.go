// Package container keeps the containers of a user that have names.
//
// A container is an image, which is somebody's file and stays as it is, and a writable
// layer over it, which is kept. Containers live in a [Store], a directory of the user's
// own on a local disk:
//
//	STORE/NAME/container.json  what it was made from, see Record
//	STORE/NAME/lock            held by who starts, changes or removes it
//	STORE/NAME/layer/          the layer, as package runtime has it, with a lock of its own
//	STORE/NAME/run/            a socket of each process that keeps it running
//
// A container runs as long as a process holds its namespaces. Each such process listens
// on a socket, and gives the descriptors of the namespaces to those that come later, of
// the same user and outside of containers: they join it, and may be the last to leave.
// With the namespaces goes what keeps them useful, like the layer's lock. So nothing
// needs to stay behind, and nothing is left running: what a crash leaves are sockets
// without a listener and locks that the kernel has dropped.
//
// The store may lie in a directory where others can write, such as /var/tmp: it has to be
// the user's own directory, and only theirs, and is opened once. All below is reached from
// that descriptor and never through a link.
package container
