package apitoken_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/store/boltstore"
)

// ack is what the child tells after an action was acknowledged to it.
type ack struct {
	Op      string // issued, refreshed, revoked, apikey, keyrevoked
	Subject string
	Access  string `json:",omitempty"`
	Refresh string `json:",omitempty"`
	ID      string `json:",omitempty"`
}

const crashDir = "APITOKEN_TEST_CRASH_DIR"

// TestCrashChild is the process that is killed.
func TestCrashChild(t *testing.T) {
	dir := os.Getenv(crashDir)
	if dir == "" {
		t.Skip("the child of TestKillAtAnyMoment")
	}
	ctx := context.Background()
	st, err := boltstore.Open(filepath.Join(dir, "tokens.db"), nil)
	require.NoError(t, err)
	seal, err := apitoken.KeyFile(filepath.Join(dir, "tokens.key"))
	require.NoError(t, err)
	c := config(st)
	c.Seal, c.InsecureKeysInStore, c.KeyRotation, c.Refresh.Grace = seal, false, time.Second, crashGrace
	c.AudienceAlgorithms = map[string]string{testAudience: "EdDSA"} // two rings that rotate; who looks afterwards has no such setting
	svc, err := apitoken.New(c)
	require.NoError(t, err)
	var mu sync.Mutex
	say := func(a ack) {
		line, err := json.Marshal(a)
		if err != nil {
			panic(err)
		}
		mu.Lock()
		defer mu.Unlock()
		fmt.Println("ACK " + string(line))
	}
	say(ack{Op: "started"})
	for worker := range 4 {
		go func() {
			for n := 0; ; n++ {
				subject := fmt.Sprintf("u-%d-%d-%d", os.Getpid(), worker, n)
				i, err := svc.Issue(ctx, apitoken.Request{Subject: subject, Scopes: apitoken.Scopes{"a"}, Refresh: true})
				if err != nil {
					panic(err)
				}
				say(ack{Op: "issued", Subject: subject, Access: i.Access.Reveal(), Refresh: i.Refresh.Reveal(), ID: i.Token.Grant()})
				if n%2 == 0 {
					i, err = svc.Refresh(ctx, apitoken.RefreshRequest{Token: i.Refresh.Reveal()})
					if err != nil {
						panic(err)
					}
					say(ack{Op: "refreshed", Subject: subject, Access: i.Access.Reveal(), Refresh: i.Refresh.Reveal(), ID: i.Token.Grant()})
				}
				if n%3 == 0 {
					if err := svc.Revoke(ctx, apitoken.BySubject(subject), "crash test"); err != nil {
						panic(err)
					}
					say(ack{Op: "revoked", Subject: subject})
				}
				if n%4 == 0 {
					x, secret, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: subject, Name: "k"})
					if err != nil {
						panic(err)
					}
					say(ack{Op: "apikey", Subject: subject, ID: x.ID, Access: secret.Reveal()})
					if n%8 == 0 {
						if err := svc.APIKeys.Revoke(ctx, x.ID, "crash test"); err != nil {
							panic(err)
						}
						say(ack{Op: "keyrevoked", ID: x.ID})
					}
				}
			}
		}()
	}
	select {}
}

// crashGrace is the longest that is allowed: a refresh whose answer the kill took is repeated by the check.
const crashGrace = time.Minute

// survey is what was acknowledged, over all rounds.
type survey struct {
	issued  map[string]ack  // by grant: the last acknowledged state, of this round
	keys    map[string]ack  // of this round
	revoked map[string]bool // subjects
	keyDead map[string]bool
	dead    []ack  // what must never live again: tokens, with Subject set, and API keys
	events  int    // that the log had after the last round
	last    string // the ID of the newest of them
}

// TestKillAtAnyMoment kills a process that issues, refreshes, revokes and makes API keys, looks at the file after each
// time, and goes on with it.
func TestKillAtAnyMoment(t *testing.T) {
	t.Parallel()
	rounds := 100
	if testing.Short() {
		rounds = 10
	}
	dir := t.TempDir()
	x := &survey{revoked: map[string]bool{}, keyDead: map[string]bool{}}
	total := 0
	for round := range rounds {
		x.issued, x.keys = map[string]ack{}, map[string]ack{}
		cmd := exec.Command(os.Args[0], "-test.run=^TestCrashChild$")
		cmd.Env = append(os.Environ(), crashDir+"="+dir)
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		cmd.Stderr = os.Stderr
		require.NoError(t, cmd.Start())
		lines := bufio.NewScanner(out)
		lines.Buffer(nil, 1<<20)
		limit := rand.IntN(60)
		n := 0
		var killed time.Time
		for lines.Scan() {
			line := lines.Text()
			if len(line) < 4 || line[:4] != "ACK " {
				continue
			}
			var a ack
			if json.Unmarshal([]byte(line[4:]), &a) != nil {
				break // cut by the kill
			}
			switch a.Op {
			case "issued", "refreshed":
				x.issued[a.ID] = a
			case "revoked":
				x.revoked[a.Subject] = true
			case "apikey":
				x.keys[a.ID] = a
			case "keyrevoked":
				x.keyDead[a.ID] = true
			}
			if n++; n == limit+1 {
				require.NoError(t, cmd.Process.Kill()) // SIGKILL; what it said before is still read
				killed = time.Now()
			}
		}
		_ = cmd.Wait()
		require.Positive(t, n, "the child never started: round %d", round)
		total += n
		x.check(t, dir, killed, round == rounds-1)
	}
	t.Logf("%d kills, %d acknowledged actions, %d events", rounds, total, x.events)
}

// check opens the file in this process. whole: all that must be dead is looked at, not only some of it.
func (x *survey) check(t *testing.T, dir string, killed time.Time, whole bool) {
	t.Helper()
	st, err := boltstore.Open(filepath.Join(dir, "tokens.db"), nil)
	require.NoError(t, err)
	defer st.Close()
	require.False(t, st.Restored(), "a crash is not a restore")
	seal, err := apitoken.KeyFile(filepath.Join(dir, "tokens.key"))
	require.NoError(t, err)
	c := config(st)
	c.Seal, c.InsecureKeysInStore, c.Refresh.Grace = seal, false, crashGrace
	svc, err := apitoken.New(c)
	require.NoError(t, err)
	defer svc.Close()

	// What was killed between the write and its word counts like what was acknowledged: with its event, or not at all.
	var log []apitoken.Event // since the last round, newest first; in the last round all of it is counted
	for e, err := range svc.Events(context.Background(), apitoken.EventQuery{}) {
		require.NoError(t, err)
		if e.ID == x.last {
			break
		}
		log = append(log, e)
	}
	x.events += len(log)
	if len(log) > 0 {
		x.last = log[0].ID
	}
	if whole {
		require.Len(t, events(t, svc, apitoken.EventQuery{OldestFirst: true}), x.events, "no event is ever lost")
	}
	opened, ended, made := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, e := range log {
		switch {
		case e.Type == event.Issued:
			opened[e.Grant] = true
		case e.Type == event.Revoked:
			ended[e.Target.String()] = true
		case e.Type == event.APIKeyChanged:
			made[e.TokenID] = true
		}
	}
	for _, e := range log {
		if e.Type != event.Issued || ended[apitoken.BySubject(e.Subject).String()] {
			continue
		}
		live := 0
		for g, err := range svc.Grants(context.Background(), apitoken.ByGrant(e.Grant), apitoken.Page{}) {
			require.NoError(t, err)
			require.Equal(t, e.Subject, g.Subject)
			live++
		}
		require.Equal(t, 1, live, "no event without its effect")
	}
	for id, a := range x.issued {
		require.True(t, opened[id], "an acknowledged token has its event")
		err := validate(svc, apitoken.NewSecret(a.Access))
		n, rerr := refresh(svc, apitoken.NewSecret(a.Refresh))
		switch {
		case x.revoked[a.Subject]:
			require.True(t, ended[apitoken.BySubject(a.Subject).String()], "an acknowledged revocation has its event")
			require.ErrorIs(t, err, apitoken.ErrRevoked, "an acknowledged revocation is never lost")
			require.ErrorIs(t, rerr, apitoken.ErrInvalidGrant)
			x.dead = append(x.dead, a)
		case errors.Is(err, apitoken.ErrRevoked): // the child was killed between the write and its word
			require.True(t, ended[apitoken.BySubject(a.Subject).String()], "no effect without its event")
			x.dead = append(x.dead, a)
		default:
			require.NoError(t, err)
			if rerr != nil && time.Since(killed) > crashGrace-10*time.Second {
				continue // on a machine this slow, what the child had done unheard is reuse by now
			}
			require.NoError(t, rerr, "an acknowledged refresh token works, or its lost successor does")
			require.NoError(t, validate(svc, n.Access))
		}
	}
	for id, a := range x.keys {
		require.True(t, made[id], "an acknowledged API key has its event")
		err := validate(svc, apitoken.NewSecret(a.Access))
		switch {
		case x.keyDead[id]:
			require.ErrorIs(t, err, apitoken.ErrRevoked)
			x.dead = append(x.dead, a)
		case errors.Is(err, apitoken.ErrRevoked):
			x.dead = append(x.dead, a)
		default:
			require.NoError(t, err)
		}
	}
	dead := x.dead
	if !whole && len(dead) > 40 {
		dead = dead[rand.IntN(len(dead)-39):][:40]
	}
	for _, a := range dead {
		err := validate(svc, apitoken.NewSecret(a.Access))
		require.True(t, errors.Is(err, apitoken.ErrRevoked) || errors.Is(err, apitoken.ErrExpired), "it stays dead: %v", err)
	}
}
