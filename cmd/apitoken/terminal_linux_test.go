package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/apitoken-go/apitoken/admin"
)

// onTerminal runs the command on a terminal of its own, so many columns wide, and returns what it wrote there.
func onTerminal(t *testing.T, columns uint16, env []string, args ...string) string {
	t.Helper()
	host, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		if os.Getenv("APITOKEN_TEST_REQUIRE") != "" {
			t.Fatal(err)
		}
		t.Skip("no terminals here: ", err)
	}
	defer host.Close()
	fd := int(host.Fd())
	require.NoError(t, unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	require.NoError(t, err)
	end, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	require.NoError(t, unix.IoctlSetWinsize(int(end.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: columns}))
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c := command(ctx, "", args...)
	c.Env = append(append(c.Env, "TERM=xterm"), env...)
	c.Stdout, c.Stderr = end, end
	var out bytes.Buffer
	read := make(chan struct{})
	go func() {
		defer close(read)
		_, _ = io.Copy(&out, host) // it ends with an error when the last writer has closed the terminal
	}()
	err = c.Run()
	require.NoError(t, end.Close())
	<-read
	require.NoError(t, err, out.String())
	return out.String()
}

// TestOnATerminal: tables are as wide as it is, and colors are there unless NO_COLOR says otherwise.
func TestOnATerminal(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "tokens.db")
	st := boltAt(t, path)
	svc := start(t, config(t, st, path+".key"))
	srv, err := admin.Serve(svc, path+admin.Suffix, admin.Options{})
	require.NoError(t, err)
	t.Cleanup(func() { srv.Close() })
	fill(t, svc)
	for _, columns := range []uint16{60, 100} {
		out := onTerminal(t, columns, nil, "sessions", "--store", path)
		lines := strings.Split(strings.TrimRight(out, "\r\n"), "\r\n")
		require.Len(t, lines, 2, out)
		for _, line := range lines {
			require.LessOrEqual(t, utf8.RuneCountInString(line), int(columns), line)
		}
	}
	require.Contains(t, onTerminal(t, 100, nil, "doctor", "--store", path), "\x1b[32m")
	require.NotContains(t, onTerminal(t, 100, []string{"NO_COLOR=1"}, "doctor", "--store", path), "\x1b[")
	require.NotContains(t, runs{t, []string{"--store", path}}.good("doctor"), "\x1b[", "into a pipe there are none")
}
