package proofs

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/examples/fleet/cut"
)

// processVariable makes the tests' own binary a process of a fleet. It holds a setup as JSON; questions and replies are lines of
// JSON on stdin and stdout.
const processVariable = "APITOKEN_PROOFS_PROCESS"

// setup is what a process of a fleet is started with.
type setup struct {
	Engine, Addr, Prefix       string
	Grace, Rotation, Staleness time.Duration
	Sealed                     bool   // keys lie sealed
	Algorithm                  string // of keys for the audience alone; empty: it has the common ones
}

func (s setup) config() apitoken.Config {
	c := apitoken.Config{Issuer: "https://auth.example.com", Audience: "https://api.example.com", InsecureKeysInStore: true, KeyRotation: s.Rotation}
	c.Refresh.Grace, c.Validation.MaxStaleness = s.Grace, s.Staleness
	if s.Sealed {
		var err error
		if c.Seal, err = apitoken.NewSealer([]byte("a key-encryption key of 32 bytes")); err != nil {
			panic(err) // it has 32 bytes
		}
		c.InsecureKeysInStore = false
	}
	if s.Algorithm != "" {
		c.AudienceAlgorithms = map[string]string{c.Audience: s.Algorithm}
	}
	return c
}

// question is one call of a service.
type question struct {
	N       int64
	Call    string
	Subject string `json:",omitempty"`
	Token   string `json:",omitempty"` // whose kind the call knows
	ID      string `json:",omitempty"` // of a grant or a signing key
	Uses    uint64 `json:",omitempty"`
}

type reply struct {
	N       int64
	Access  string `json:",omitempty"` // or an API key
	Refresh string `json:",omitempty"`
	Grant   string `json:",omitempty"`
	Error   int    `json:",omitempty"` // from 1, of sentinels; beyond them: another
	Text    string `json:",omitempty"`
}

// sentinels are the errors whose class crosses a pipe.
var sentinels = []error{apitoken.ErrUnavailable, apitoken.ErrInvalidGrant, apitoken.ErrRevoked, apitoken.ErrLimited}

func (r reply) err() error {
	switch {
	case r.Error == 0:
		return nil
	case r.Error <= len(sentinels):
		return fmt.Errorf("%w: %s", sentinels[r.Error-1], r.Text)
	}
	return errors.New(r.Text)
}

// do asks a service.
func do(ctx context.Context, svc *apitoken.Service, q question) (r reply) {
	var err error
	var issued *apitoken.Issued
	switch q.Call {
	case "issue":
		issued, err = svc.Issue(ctx, apitoken.Request{Subject: q.Subject, Refresh: true})
	case "refresh":
		issued, err = svc.Refresh(ctx, apitoken.RefreshRequest{Token: q.Token})
	case "revoke grant":
		err = svc.Revoke(ctx, apitoken.ByGrant(q.ID), "test")
	case "revoke subject":
		err = svc.Revoke(ctx, apitoken.BySubject(q.Subject), "test")
	case "validate":
		_, err = svc.Validate(ctx, apitoken.Bearer(q.Token))
	case "use":
		_, err = apitoken.Authorize(ctx, svc, apitoken.Bearer(q.Token), apitoken.Authenticated())
	case "make key":
		var key apitoken.Secret
		if _, key, err = svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: q.Subject, MaxUses: q.Uses}); err == nil {
			r.Access = key.Reveal()
		}
	case "compromise":
		err = svc.SigningKeys.Compromise(ctx, q.ID, "test")
	case "rotate secrets":
		err = svc.SigningKeys.RotateSecrets(ctx)
	case "spent": // whether signing keys have moved under the newest root secret
		err = errors.New("not yet")
		for e, eerr := range svc.Events(ctx, apitoken.EventQuery{Type: event.KeyChanged}) {
			if eerr != nil {
				err = eerr
				break
			}
			if e.Reason == "older root secrets prove no signing key any more" {
				err = nil
			}
		}
	case "sync":
		err = svc.Sync(ctx)
	default:
		err = errors.New("no such call: " + q.Call)
	}
	r.N = q.N
	if err != nil {
		r.Text, r.Error = fmt.Sprintf("%+v", err), len(sentinels)+1 // with the detail
		for i, s := range sentinels {
			if errors.Is(err, s) {
				r.Error = i + 1
				break
			}
		}
	} else if issued != nil {
		r.Access, r.Refresh, r.Grant = issued.Access.Reveal(), issued.Refresh.Reveal(), issued.Token.Grant()
	}
	return r
}

// serve is what a process of a fleet does until it is killed or its parent ends.
func serve(ctx context.Context, described string, in io.Reader, out io.Writer) error {
	var s setup
	if err := json.Unmarshal([]byte(described), &s); err != nil {
		return err
	}
	st, disconnect, err := connect(ctx, s.Engine, s.Addr, s.Prefix)
	if err != nil {
		return err
	}
	defer disconnect()
	c := s.config()
	c.Store = st
	svc, err := apitoken.New(c)
	if err != nil {
		return err
	}
	defer svc.Close()
	var mu sync.Mutex // guards what is written
	enc := json.NewEncoder(out)
	say := func(r reply) {
		mu.Lock()
		defer mu.Unlock()
		_ = enc.Encode(r) // who does not hear it is gone
	}
	say(reply{})
	var under sync.WaitGroup
	defer under.Wait()
	for dec := json.NewDecoder(in); ; {
		var q question
		if err := dec.Decode(&q); err != nil {
			return nil // the parent ended
		}
		under.Go(func() { say(do(ctx, svc, q)) })
	}
}

// errKilled: the process was killed before it answered, so that nobody knows what it did. It is repeated as ErrUnavailable is.
var errKilled = fmt.Errorf("%w: the process was killed", apitoken.ErrUnavailable)

// peer is one process of a fleet: of the system's, where the engine can be shared between those, with its stamps of call and
// return taken on this side of the pipe; else a service in this process.
type peer struct {
	svc  *apitoken.Service
	wire *cut.Proxy // to its engine; nil: there is no server

	cmd  *exec.Cmd
	in   io.WriteCloser
	gone chan struct{} // closed when it has ended

	mu      sync.Mutex // guards what follows, and the writing to in
	n       int64
	waiting map[int64]chan reply
	ended   bool
}

// fleet starts n processes.
func (e engine) fleet(t testing.TB, n int, s setup) []*peer {
	t.Helper()
	list := make([]*peer, n)
	var all sync.WaitGroup
	for i := range list {
		if e.addr == "" {
			list[i] = &peer{svc: e.process(t, func(c *apitoken.Config) { st := c.Store; *c = s.config(); c.Store = st }).Service}
			continue
		}
		all.Go(func() { list[i] = e.spawn(t, s) })
	}
	all.Wait()
	for _, p := range list {
		require.NotNil(t, p, "a process did not start")
	}
	return list
}

// spawn starts one more process of the system's. It may be called from any goroutine, and returns nil if it fails.
func (e engine) spawn(t testing.TB, s setup) *peer {
	p := &peer{gone: make(chan struct{}), waiting: map[int64]chan reply{}}
	err := func() (err error) {
		if p.wire, err = cut.New(e.addr); err != nil {
			return err
		}
		t.Cleanup(func() { _ = p.wire.Close() })
		s.Engine, s.Addr, s.Prefix = e.name, p.wire.Addr(), e.prefix
		described, err := json.Marshal(s)
		if err != nil {
			return err
		}
		self, err := os.Executable()
		if err != nil {
			return err
		}
		p.cmd = exec.Command(self)
		p.cmd.Env = append(os.Environ(), processVariable+"="+string(described))
		p.cmd.Stderr = os.Stderr
		if p.in, err = p.cmd.StdinPipe(); err != nil {
			return err
		}
		out, err := p.cmd.StdoutPipe()
		if err != nil {
			return err
		}
		if err := p.cmd.Start(); err != nil {
			return err
		}
		t.Cleanup(p.kill)
		lines := bufio.NewReader(out)
		if _, err := lines.ReadString('\n'); err != nil {
			go p.hear(lines)
			return fmt.Errorf("it says nothing: %w", err)
		}
		go p.hear(lines)
		return nil
	}()
	if err != nil {
		t.Errorf("no process: %v", err)
		return nil
	}
	return p
}

// hear hands out replies until the process has ended, and then tells those who wait that there will be none.
func (p *peer) hear(lines io.Reader) {
	defer close(p.gone)
	for dec := json.NewDecoder(lines); ; {
		var r reply
		if dec.Decode(&r) != nil {
			break
		}
		p.mu.Lock()
		heard := p.waiting[r.N]
		delete(p.waiting, r.N)
		p.mu.Unlock()
		heard <- r
	}
	_ = p.cmd.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	for _, heard := range p.waiting {
		close(heard)
	}
}

// kill ends a process with SIGKILL, and returns when it is gone.
func (p *peer) kill() {
	_ = p.cmd.Process.Kill()
	<-p.gone
}

func (p *peer) ask(q question) (reply, error) {
	if p.svc != nil {
		r := do(context.Background(), p.svc, q)
		return r, r.err()
	}
	heard := make(chan reply, 1)
	p.mu.Lock()
	if p.ended {
		p.mu.Unlock()
		return reply{}, errKilled
	}
	p.n++
	q.N = p.n
	p.waiting[q.N] = heard
	line, err := json.Marshal(q)
	if err == nil {
		_, _ = p.in.Write(append(line, '\n')) // if it is gone, hear tells
	}
	p.mu.Unlock()
	if err != nil {
		return reply{}, err
	}
	r, ok := <-heard
	if !ok {
		return reply{}, errKilled
	}
	return r, r.err()
}

// insist asks until there is an answer that is none of "try again".
func (p *peer) insist(t testing.TB, q question) (r reply) {
	t.Helper()
	writes(t, func() (err error) { r, err = p.ask(q); return err })
	return r
}

// verdict is the first answer on a token that is none of "try again": on a busy machine a view may be too old for a moment.
func (p *peer) verdict(token string) (err error) {
	for began := time.Now(); time.Since(began) < time.Minute; time.Sleep(5 * time.Millisecond) {
		if _, err = p.ask(question{Call: "validate", Token: token}); !errors.Is(err, apitoken.ErrUnavailable) {
			return err
		}
	}
	return err
}
