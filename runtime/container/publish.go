package container

import (
	"errors"
	"fmt"
	"io/fs"
)

// Publish lets others join a container that has no name and no layer of the store, like
// that of a job's step, under one that is made up for it. It is for Claim in mode Join
// only, and goes when it is closed.
func (s *Store) Publish(name string, state State) (*Container, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	if err := s.mkdir(name); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make container %s: %w", name, plain(err))
	}
	c, err := s.dir(name)
	if err != nil {
		return nil, err
	}
	if err = c.tryAcquire(); err == nil { // it is ours alone, or what a crash has left
		if err = c.read(); err == nil && c.record != nil {
			err = fmt.Errorf("container %s: %w", name, fs.ErrExist)
		}
	}
	if err == nil {
		c.scratch = true
		err = c.Serve(state)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}
