package fusefs

// waiter is somebody who waits in a line: for a turn, or for room.
type waiter struct {
	size  int64      // bytes of room
	ready chan int64 // gets something when the wait is over, of a turn the time when it began; has room for that
	next  *waiter
}

// line is who waits, in the order in which they came.
type line struct{ first, last *waiter }

func (l *line) push(w *waiter) {
	if l.first == nil {
		l.first = w
	} else {
		l.last.next = w
	}
	l.last = w
}

func (l *line) pop() *waiter {
	w := l.first
	l.first, w.next = w.next, nil
	return w
}

// append moves all of m behind those in l.
func (l *line) append(m *line) {
	if m.first == nil {
		return
	}
	if l.first == nil {
		*l = *m
	} else {
		l.last.next, l.last = m.first, m.last
	}
	*m = line{}
}

// waiters are those that wait for nothing, for their next use.
type waiters struct{ first *waiter }

func (s *waiters) get() *waiter {
	w := s.first
	if w == nil {
		return &waiter{ready: make(chan int64, 1)}
	}
	s.first, w.next = w.next, nil
	return w
}

func (s *waiters) put(w *waiter) { w.next, s.first = s.first, w }
