package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// screen is a terminal that a program has for itself, until leave.
type screen struct {
	in, out *os.File
	saved   *unix.Termios // of in before; nil: it is no terminal, and no keys come from it
}

// Sequences of all terminals since xterm, whose names here are those of its documentation (ctlseqs).
const (
	alternateScreen = "\x1b[?1049h"
	normalScreen    = "\x1b[?1049l"
	hideCursor      = "\x1b[?25l"
	showCursor      = "\x1b[?25h"
	cursorHome      = "\x1b[H"
	clearBelow      = "\x1b[J"
	reverseVideo    = "\x1b[7m"
	normalVideo     = "\x1b[m"
)

// enter has keys come one by one, unseen, and takes the screen. Signals of the terminal stay what they are.
func (s *screen) enter() {
	if old, err := unix.IoctlGetTermios(int(s.in.Fd()), unix.TCGETS); err == nil {
		keys := *old
		keys.Lflag &^= unix.ICANON | unix.ECHO
		keys.Cc[unix.VMIN], keys.Cc[unix.VTIME] = 1, 0
		if unix.IoctlSetTermios(int(s.in.Fd()), unix.TCSETSW, &keys) == nil {
			s.saved = old
		}
	}
	fmt.Fprint(s.out, alternateScreen+hideCursor)
}

// leave gives all back as it was.
func (s *screen) leave() {
	fmt.Fprint(s.out, showCursor+normalScreen)
	if s.saved != nil {
		_ = unix.IoctlSetTermios(int(s.in.Fd()), unix.TCSETSW, s.saved) // it is gone, or takes it
		s.saved = nil
	}
}

// size returns columns and lines; those of a terminal that does not know are 80 and 24.
func (s *screen) size() (columns, lines int) {
	size, err := unix.IoctlGetWinsize(int(s.out.Fd()), unix.TIOCGWINSZ)
	if err != nil || size.Col == 0 || size.Row == 0 {
		return 80, 24
	}
	return int(size.Col), int(size.Row)
}

// key is a key that was pressed: a character, or one of these.
type key rune

const (
	keyUp key = -1 - iota
	keyDown
	keyRight
	keyLeft
	keyPageUp
	keyPageDown
)

// keysOf finds keys in what was read at once.
func keysOf(b []byte) (keys []key) {
	for len(b) > 0 {
		k, n := key(b[0]), 1
		if b[0] == 0x1b {
			k, n = escaped(b)
		}
		if k != 0 {
			keys = append(keys, k)
		}
		b = b[n:]
	}
	return keys
}

// escaped is the key of a sequence that begins with ESC, 0 if it is none of those that count here, and its length.
func escaped(b []byte) (key, int) {
	if len(b) < 3 || b[1] != '[' && b[1] != 'O' {
		return 0, min(len(b), 2)
	}
	n := 3
	for n <= len(b) && (b[n-1] < 0x40 || b[n-1] > 0x7e) { // parameters before the final byte (ECMA-48, 5.4)
		n++
	}
	if n > len(b) {
		return 0, len(b)
	}
	switch string(b[2:n]) {
	case "A":
		return keyUp, n
	case "B":
		return keyDown, n
	case "C":
		return keyRight, n
	case "D":
		return keyLeft, n
	case "5~":
		return keyPageUp, n
	case "6~":
		return keyPageDown, n
	}
	return 0, n
}
