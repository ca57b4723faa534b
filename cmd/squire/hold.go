package main

import (
	"os"

	"github.com/squirefs/squire/runtime"
)

// hold makes a container that is held, see runtime.Runner. log gets what an entrypoint says. end is to
// be called when the container was closed.
func (o *runOptions) hold(spec *runtime.Spec, host *runtime.Host, ops []runtime.Op, log *os.File) (held *runtime.Held, end func(), err error) {
	if spec.Dir != "" {
		r := &runtime.Runner{Log: log}
		held, err = holdContainer(r, spec, host, ops, func() error { return nil })
		return held, func() {}, err
	}
	site, err := siteConfig()
	if err != nil {
		return nil, nil, err
	}
	file, err := site.openImage(spec.Image)
	if err != nil {
		return nil, nil, err
	}
	defer file.Close()
	i := &containerImage{o: o, spec: spec, host: host, file: file}
	i.runner.Log = log
	if err = i.begin(); err != nil {
		return nil, nil, err
	}
	theirs, err := i.connect()
	if err != nil {
		return nil, nil, err
	}
	held, err = holdContainer(&i.runner, spec, host, ops, i.prepare)
	theirs.Close()
	i.init.Close()
	if err != nil {
		return nil, nil, i.end(err)
	}
	return held, func() {
		if o.shared {
			i.leave()
		} else {
			_ = i.end(nil)
		}
	}, nil
}

// holdLayered is hold for a container that shares the layer of one that runs, whose namespaces are given.
func (o *runOptions) holdLayered(spec *runtime.Spec, host *runtime.Host, ops []runtime.Op, beside []runtime.Namespace, log *os.File) (*runtime.Held, error) {
	root, err := runtime.RootOf(beside)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	i := &containerImage{o: o, spec: spec, host: host}
	i.runner.Log = log
	theirs, err := i.connect()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	defer i.init.Close()
	return holdContainer(&i.runner, spec, host, ops, func() error {
		return sendMessage(i.init, &imageMount{Mounted: true}, root)
	})
}

// holdContainer is runContainer for one that is held.
func holdContainer(r *runtime.Runner, spec *runtime.Spec, host *runtime.Host, ops []runtime.Op, prepare func() error) (*runtime.Held, error) {
	if err := r.Start(spec, host); err != nil {
		return nil, err
	}
	if err := prepare(); err != nil {
		r.Abandon()
		return nil, err
	}
	return r.Hold(ops)
}
