//go:build linux

package boltstore

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/store"
)

func init() { roles["faults"] = faultChild }

// faultChanges is how many changes each worker of faultChild makes.
const faultChanges = 30

// faultChild makes changes while its system calls fail, and repeats each until it is acknowledged, as the contract says:
// the identical Change. It ends as if it were killed.
func faultChild(path string) {
	groupMembers, mergeWidth = 16, 3
	s, err := Open(path, nil)
	if err != nil {
		fmt.Println("error", err)
		os.Exit(3)
	}
	fmt.Println("open")
	ctx := context.Background()
	var wg sync.WaitGroup
	var out sync.Mutex
	say := func(a ...any) { out.Lock(); defer out.Unlock(); fmt.Println(a...) }
	for w := range crashWorkers {
		wg.Go(func() {
			expect := store.Version{}
			for n := 1; n <= faultChanges; n++ {
				c := crashChange(w, n, expect)
				for {
					_, err := s.Apply(ctx, c)
					if err == nil {
						break
					}
					say("fault", err)
					if errors.Is(err, store.ErrConflict) {
						say("error", w, n, err)
						os.Exit(4)
					}
					time.Sleep(10 * time.Millisecond) // a full disk is looked at once a second
				}
				expect = c.ID
				say("ack", w, n)
				// What was acknowledged is there, or nothing is answered.
				if r, err := s.Get(ctx, store.KindRule, c.Puts[1].ID); err == nil && r.Version != c.ID || errors.Is(err, store.ErrNotFound) {
					say("error", w, n, "acknowledged and not there:", err)
					os.Exit(4)
				}
			}
		})
	}
	wg.Wait()
	fmt.Println("done")
	os.Exit(0)
}

// TestFailingSystemCalls lets the kernel refuse what the store asks of it, by strace: a sync that fails, a write that
// fails, a disk that is full for a moment. All changes are acknowledged in the end, each is there once, and whole.
func TestFailingSystemCalls(t *testing.T) {
	t.Parallel()
	strace, err := exec.LookPath("strace")
	if err != nil {
		if os.Getenv("APITOKEN_TEST_REQUIRE") != "" {
			t.Fatal("no strace on this machine")
		}
		t.Skip("no strace on this machine; install strace to run this test")
	}
	if out, err := exec.CommandContext(t.Context(), strace, "-f", "-e", "trace=none", "true").CombinedOutput(); err != nil {
		t.Skipf("strace is not allowed here: %v %s", err, out)
	}
	for _, fault := range []string{
		"fdatasync:error=EIO:when=9+7",
		"fdatasync:error=ENOSPC:when=9+17",
		"pwrite64:error=EIO:when=60+41",
		"pwrite64:error=ENOSPC:when=60+211",
		"pwrite64:error=EDQUOT:when=61+197",
		"fsync:error=EIO:when=5+2",
	} {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "tokens.db")
			require.NoError(t, openT(t, path, nil).Close())
			call, _, _ := strings.Cut(fault, ":")
			cmd := exec.CommandContext(t.Context(), strace, "-f", "-o", filepath.Join(t.TempDir(), "trace"),
				"-e", "trace="+call, "-e", "inject="+fault, os.Args[0])
			cmd.Env = append(os.Environ(), envRole+"=faults", envFile+"="+path)
			pipe, err := cmd.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, cmd.Start())
			acked, faults, done := map[int]int{}, 0, false
			for sc := bufio.NewScanner(pipe); sc.Scan(); {
				switch f := strings.Fields(sc.Text()); f[0] {
				case "ack":
					w, _ := strconv.Atoi(f[1])
					acked[w], _ = strconv.Atoi(f[2])
				case "fault":
					faults++
				case "done":
					done = true
				case "error":
					t.Error(sc.Text())
				}
			}
			_ = cmd.Wait()
			require.True(t, done, "all changes are done in the end: %v", acked)
			t.Logf("%d answers were errors", faults)
			if call != "fsync" { // of the mark and the reserve, not of a commit
				require.Positive(t, faults)
			}
			s := openT(t, path, nil)
			require.False(t, s.Restored())
			checkAcked(t, s, acked, fault)
			for w := range crashWorkers {
				require.Equal(t, faultChanges, acked[w], "once each")
			}
		})
	}
}
