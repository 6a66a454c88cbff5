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
	"github.com/apitoken-go/apitoken/store/boltstore"
)

// ack is what the child tells after an action was acknowledged to it.
type ack struct {
	Op      string // issued, refreshed, revoked, apikey, keyrevoked, rotated, compromised
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
	c.Seal, c.InsecureKeysInStore, c.KeyRotation = seal, false, time.Second
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

func TestKillAtAnyMoment(t *testing.T) {
	t.Parallel()
	rounds := 100
	if testing.Short() {
		rounds = 10
	}
	dir := t.TempDir()
	issued := map[string]ack{}   // by grant: the last acknowledged state
	revoked := map[string]bool{} // subjects
	keys := map[string]ack{}
	keyDead := map[string]bool{}
	total := 0
	for round := range rounds {
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
				issued[a.ID] = a
			case "revoked":
				revoked[a.Subject] = true
			case "apikey":
				keys[a.ID] = a
			case "keyrevoked":
				keyDead[a.ID] = true
			}
			if n++; n == limit+1 {
				require.NoError(t, cmd.Process.Kill()) // SIGKILL; what it said before is still read
			}
		}
		_ = cmd.Wait()
		require.Positive(t, n, "the child never started: round %d", round)
		total += n
		if round%10 != 9 && round != rounds-1 {
			continue // look at every tenth, and go on with the same file
		}
		checkAfterCrash(t, dir, issued, revoked, keys, keyDead)
		clear(issued) // refreshing moved them on
	}
	t.Logf("%d kills, %d acknowledged actions", rounds, total)
}

func checkAfterCrash(t *testing.T, dir string, issued map[string]ack, revoked map[string]bool, keys map[string]ack, keyDead map[string]bool) {
	t.Helper()
	st, err := boltstore.Open(filepath.Join(dir, "tokens.db"), nil)
	require.NoError(t, err)
	defer st.Close()
	seal, err := apitoken.KeyFile(filepath.Join(dir, "tokens.key"))
	require.NoError(t, err)
	c := config(st)
	c.Seal, c.InsecureKeysInStore = seal, false
	svc, err := apitoken.New(c)
	require.NoError(t, err)
	defer svc.Close()
	known := map[string]bool{} // grants that have their event
	for _, e := range events(t, svc, apitoken.EventQuery{Type: apitoken.EventIssued}) {
		known[e.Grant] = true
	}
	moved := map[string]bool{} // grants that were refreshed, whether that was acknowledged or not
	for _, e := range events(t, svc, apitoken.EventQuery{Type: apitoken.EventRefreshed}) {
		moved[e.Grant] = true
	}
	for id, a := range issued {
		require.True(t, known[id], "an acknowledged token has its event")
		err := validate(svc, apitoken.NewSecret(a.Access))
		n, rerr := refresh(svc, apitoken.NewSecret(a.Refresh))
		if revoked[a.Subject] {
			require.ErrorIs(t, err, apitoken.ErrRevoked, "an acknowledged revocation is never lost")
			require.ErrorIs(t, rerr, apitoken.ErrInvalidGrant)
			continue
		}
		if errors.Is(err, apitoken.ErrRevoked) {
			continue // the child was killed between the write and its word
		}
		require.NoError(t, err)
		if a.Op == "issued" && moved[id] && errors.Is(rerr, apitoken.ErrInvalidGrant) {
			continue // killed between the refresh and its word, longer ago than the grace window: on a slow machine
		}
		require.NoError(t, rerr, "an acknowledged refresh token works, or its lost successor does")
		require.NoError(t, validate(svc, n.Access))
	}
	for id, a := range keys {
		err := validate(svc, apitoken.NewSecret(a.Access))
		switch {
		case keyDead[id] || revoked[a.Subject] && errors.Is(err, apitoken.ErrRevoked):
			require.Error(t, err)
		case errors.Is(err, apitoken.ErrRevoked):
		default:
			require.NoError(t, err)
		}
	}
}
