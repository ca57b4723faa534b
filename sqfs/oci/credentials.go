package oci

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/configfile"
	"github.com/docker/cli/cli/config/types"
	"github.com/google/go-containerregistry/pkg/authn"
)

const (
	hintLogin      = "log in with docker login or podman login, or write it into enroot's .credentials"
	maxCredentials = 1 << 20 // bytes of a file of credentials
)

// credentials are what a registry is shown, and where they come from.
type credentials struct {
	config authn.AuthConfig
	source string   // "" if there are none
	looked []string // where there were none, for the message that they are missing
}

func (c *credentials) found() bool { return c.source != "" }

func (c *credentials) auth() authn.Authenticator {
	if !c.found() {
		return authn.Anonymous
	}
	return authn.FromConfig(c.config)
}

// String says what was tried and what to do, for when it did not suffice.
func (c *credentials) String() string {
	if c.found() {
		return "with the credentials in " + c.source + ": are they still good, and for this image?"
	}
	return "without credentials: " + c.missing() + "; " + hintLogin
}

// missing says where there are none.
func (c *credentials) missing() string {
	if len(c.looked) == 0 {
		return "no file is known to have them, for HOME is not set"
	}
	return "none in " + strings.Join(c.looked, ", ")
}

// redact takes secrets out of a text, should a server have put them there.
func (c *credentials) redact(s string) string {
	both := c.config.Username + ":" + c.config.Password
	for _, secret := range []string{base64.StdEncoding.EncodeToString([]byte(both)), c.config.Password, c.config.IdentityToken, c.config.RegistryToken, c.config.Auth} {
		if len(secret) >= 4 {
			s = strings.ReplaceAll(s, secret, "***")
		}
	}
	return s
}

// findCredentials looks for what is to be shown to a registry: in the files of Docker, then
// Podman, then enroot. A user that is named must be found. What cannot be read counts as
// missing, for the image may be public, and is told of when the registry wants more.
func findCredentials(registry, repo, user string) (credentials, error) {
	var c credentials
	for _, find := range []func(*credentials, string, string, string) (bool, error){fromDocker, fromEnroot} {
		found, err := find(&c, registry, repo, user)
		if err != nil {
			return c, err
		}
		if found {
			return c, nil
		}
	}
	if user != "" {
		return c, fmt.Errorf("oci: no credentials of the user that is named for %s: %s; %s", registry, c.missing(), hintLogin)
	}
	return c, nil
}

// dockerFiles are the files in Docker's form, in the order in which they are asked.
func dockerFiles() []string {
	var files []string
	add := func(parts ...string) {
		if parts[0] != "" {
			files = append(files, filepath.Join(parts...))
		}
	}
	home, _ := os.UserHomeDir()
	add(os.Getenv("REGISTRY_AUTH_FILE"))
	if d := os.Getenv("DOCKER_CONFIG"); d != "" {
		add(d, "config.json")
	} else {
		add(home, ".docker/config.json")
	}
	add(os.Getenv("XDG_RUNTIME_DIR"), "containers/auth.json")
	if d := os.Getenv("XDG_CONFIG_HOME"); d != "" {
		add(d, "containers/auth.json")
	} else {
		add(home, ".config/containers/auth.json")
	}
	return files
}

// fromDocker looks in the files of Docker and Podman, and asks the credential helpers that
// they name: docs.docker.com "docker login", containers-auth.json(5).
func fromDocker(c *credentials, registry, repo, user string) (bool, error) {
	for _, file := range dockerFiles() {
		b, err := readCredentials(file)
		if errors.Is(err, fs.ErrNotExist) {
			c.looked = append(c.looked, file)
			continue
		} else if err != nil {
			c.looked = append(c.looked, fmt.Sprintf("%s (%v)", file, err))
			continue
		}
		conf, err := config.LoadFromReader(bytes.NewReader(b))
		if err != nil {
			c.looked = append(c.looked, file+" (which is no configuration of Docker)")
			continue
		}
		got, err := lookUp(conf, registry, repo)
		if err != nil {
			c.looked = append(c.looked, fmt.Sprintf("%s (whose credential helper says: %s)", file, printable(err.Error(), 200)))
			continue
		}
		if got == (types.AuthConfig{}) || user != "" && got.Username != user {
			c.looked = append(c.looked, file)
			continue
		}
		c.source = file
		c.config = authn.AuthConfig{
			Username: got.Username, Password: got.Password, Auth: got.Auth,
			IdentityToken: got.IdentityToken, RegistryToken: got.RegistryToken,
		}
		return true, nil
	}
	return false, nil
}

// lookUp asks for the image, what it lies in, and the registry, the longest name first, as
// Podman does; Docker has registries only.
func lookUp(conf *configfile.ConfigFile, registry, repo string) (types.AuthConfig, error) {
	for path := registry + "/" + repo; path != registry; path = path[:strings.LastIndexByte(path, '/')] {
		if a, ok := conf.GetAuthConfigs()[path]; ok {
			a.ServerAddress = ""
			return a, nil
		}
	}
	names := []string{registry}
	if registry == hub {
		names = []string{authn.DefaultAuthKey, hub, "index.docker.io", "registry-1.docker.io"}
	}
	var first error
	for _, n := range names {
		a, err := conf.GetAuthConfig(n)
		if err != nil && first == nil {
			first = err
		}
		if a.ServerAddress = ""; err == nil && a != (types.AuthConfig{}) {
			return a, nil
		}
	}
	return types.AuthConfig{}, first
}

// enrootFile is where enroot keeps credentials.
func enrootFile() string {
	if d := os.Getenv("ENROOT_CONFIG_PATH"); d != "" {
		return filepath.Join(d, ".credentials")
	}
	if d := os.Getenv("XDG_CONFIG_HOME"); d != "" {
		return filepath.Join(d, "enroot/.credentials")
	}
	if home, err := os.UserHomeDir(); err == nil {
		return filepath.Join(home, ".config/enroot/.credentials")
	}
	return ""
}

// fromEnroot looks in enroot's file of credentials.
func fromEnroot(c *credentials, registry, _, user string) (bool, error) {
	file := enrootFile()
	if file == "" {
		return false, nil
	}
	b, err := readCredentials(file)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			file = fmt.Sprintf("%s (%v)", file, err)
		}
		c.looked = append(c.looked, file)
		return false, nil
	}
	for _, m := range parseNetrc(string(b)) {
		if !m.is(registry) || user != "" && m.login != user {
			continue
		}
		secret, err := evalSecret(m.password)
		if err != nil {
			return false, fmt.Errorf("oci: the secret for %s in %s: %w", registry, file, err)
		}
		c.source = file
		c.config = authn.AuthConfig{Username: m.login, Password: secret}
		return true, nil
	}
	c.looked = append(c.looked, file)
	return false, nil
}

// machine is an entry of a netrc file, as ftp(1) has it.
type machine struct{ name, login, password string }

func (m machine) is(registry string) bool {
	canon, err := checkRegistry(m.name) // of no name it makes Docker Hub
	// enroot wants the port left out of the file; with one it is meant exactly.
	return m.name != "" && err == nil && (canon == registry || canon == hostName(registry))
}

// parseNetrc reads enroot's form of netrc: a secret that begins with $ goes to the end of the
// line, for it is a command of the shell.
func parseNetrc(s string) []machine {
	var all []machine
	for line := range strings.Lines(s) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "#") {
			continue
		}
		for line != "" {
			var key, val string
			key, line = word(line)
			switch key {
			case "machine":
				val, line = word(line)
				all = append(all, machine{name: val})
				continue
			case "default": // for ftp: no registry is meant by it
				all = append(all, machine{})
				continue
			case "login", "password", "account":
			default:
				continue
			}
			if key == "password" && strings.HasPrefix(line, "$") {
				val, line = line, ""
			} else {
				val, line = word(line)
			}
			if len(all) == 0 {
				continue
			}
			switch m := &all[len(all)-1]; key {
			case "login":
				m.login = val
			case "password":
				m.password = val
			}
		}
	}
	return all
}

// word splits off the first word of a line.
func word(s string) (first, rest string) {
	s = strings.TrimLeft(s, " \t\r")
	i := strings.IndexAny(s, " \t\r")
	if i < 0 {
		return s, ""
	}
	return s[:i], strings.TrimLeft(s[i:], " \t\r")
}

// evalSecret gives a secret that begins with $ to the shell, as enroot does: $(aws ecr
// get-login-password), ${TOKEN}. The file belongs to the user; nothing of the image or its
// registry gets here.
func evalSecret(s string) (string, error) {
	if !strings.HasPrefix(s, "$") {
		return s, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", `secret="`+s+`" && printf %s "$secret"`)
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return "", errors.New("its command does not end")
	case errors.As(err, &exit):
		return "", fmt.Errorf("its command ended with %s", exit.ProcessState)
	case err != nil:
		return "", err
	case len(out) == 0:
		return "", errors.New("its command gave nothing")
	}
	return strings.TrimRight(string(out), "\r\n"), nil
}

// readCredentials reads a file that only its owner should be able to change.
func readCredentials(file string) ([]byte, error) {
	f, err := os.OpenFile(file, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a fifo is no reason to wait
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, serr := f.Stat(); serr != nil || !st.Mode().IsRegular() {
		return nil, errors.New("no regular file")
	}
	b, err := readSmall(f, maxCredentials)
	if err != nil {
		return nil, errors.New("cannot be read")
	}
	return b, nil
}
