package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"

	"github.com/apitoken-go/apitoken/internal/opaque"
)

// leak is a credential where it does not belong.
type leak struct {
	File  string `json:"file"`           // in a git history: the path under which the content was committed
	Line  int    `json:"line"`           // from 1
	Kind  string `json:"kind"`           // API key, refresh token, client secret or ticket
	Start string `json:"start"`          // its first characters: they hold nothing of its secret
	ID    string `json:"id,omitempty"`   // by which the service knows it
	Blob  string `json:"blob,omitempty"` // of git: the object that holds it

	token string
}

type leaks struct {
	Items   []leak `json:"items"`
	Files   int    `json:"files"` // looked through; of git, objects
	Bytes   int64  `json:"bytes"`
	Skipped int    `json:"skipped"` // could not be read
	Ended   int    `json:"ended"`   // with --revoke
}

// kept at most: who has more has to look at the first ones anyway.
const maxLeaks = 10_000

// scanner is a scan under way.
type scanner struct {
	bar   *progressbar.ProgressBar
	where chan place
	wg    sync.WaitGroup

	mu  sync.Mutex // guards out
	out leaks
}

// place is something to look through: a file, or content that was read already.
type place struct {
	path, blob string
	content    []byte // nil: read the file at path
}

func (a *app) leakCommand() *cobra.Command {
	c := &cobra.Command{Use: "leak", Short: "Find credentials where they do not belong", Args: exactly(0, ""), RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	var git, revoke bool
	var reason string
	scan := &cobra.Command{
		Use: "scan [PATH]", Short: "Look through a directory or a git history for credentials of this module's making",
		Long: `scan looks through a file, a directory (default: this one), or with --git through everything in a git repository, commits that nothing
refers to included, for API keys, refresh tokens, tickets and client secrets of any service of this module. Their checksum
tells them from look-alikes. It prints where they are and how they begin, never the credential. Symbolic links are not
followed, archives not opened, access tokens (JWTs) not looked for: they end by themselves within minutes.

With --revoke what is found is ended at the service of --store or --admin.

Exit code 3: something was found. So a CI job fails by: apitoken leak scan .`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usage("", "leak scan takes one path")
			}
			if revoke {
				return needReason(reason)
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			path := "."
			if len(args) == 1 {
				path = args[0]
			}
			return a.scan(c.Context(), path, git, revoke, reason)
		},
	}
	scan.Flags().BoolVar(&git, "git", false, "the history of the git repository at PATH")
	scan.Flags().BoolVar(&revoke, "revoke", false, "end what is found, at the service")
	reasonFlag(scan, &reason)
	scan.Flags().Lookup("reason").Usage = "with --revoke: why, for the audit trail"
	c.AddCommand(scan)
	return c
}

func (a *app) scan(ctx context.Context, path string, git, revoke bool, reason string) error {
	if _, err := os.Stat(path); err != nil {
		return &failure{code: notFound, err: err}
	}
	s := &scanner{bar: a.bar(-1, "scan", true), where: make(chan place, 64), out: leaks{Items: []leak{}}}
	for range runtime.GOMAXPROCS(0) {
		s.wg.Add(1)
		go s.work()
	}
	var err error
	if git {
		err = s.git(ctx, path)
	} else {
		err = s.directory(ctx, path)
	}
	close(s.where)
	s.wg.Wait()
	_ = s.bar.Finish() // only what is shown
	if err != nil {
		return err
	}
	if git {
		if err := names(ctx, path, s.out.Items); err != nil {
			return err
		}
	}
	slices.SortFunc(s.out.Items, func(x, y leak) int {
		return cmp.Or(cmp.Compare(x.File, y.File), cmp.Compare(x.Blob, y.Blob), cmp.Compare(x.Line, y.Line), cmp.Compare(x.Start, y.Start))
	})
	if revoke && len(s.out.Items) > 0 {
		if err := a.endLeaks(ctx, &s.out, reason); err != nil {
			return err
		}
	}
	return a.showLeaks(&s.out)
}

func (a *app) showLeaks(l *leaks) error {
	if a.json {
		if err := a.print(l); err != nil {
			return err
		}
	} else {
		var rows [][]string
		for _, x := range l.Items {
			at := x.File + ":" + strconv.Itoa(x.Line)
			if x.Blob != "" {
				at += " (" + x.Blob[:min(len(x.Blob), 12)] + ")"
			}
			rows = append(rows, []string{at, x.Kind, x.Start + "…"})
		}
		if len(rows) > 0 {
			a.table([]string{"WHERE", "WHAT", "BEGINS WITH"}, rows)
		}
		a.note("%d found in %d files, %s; %d could not be read.", len(l.Items), l.Files, size(uint64(l.Bytes)), l.Skipped)
		if l.Ended > 0 {
			a.note("%d were of this service and are ended.", l.Ended)
		} else if len(l.Items) > 0 {
			a.note("End them: --revoke --reason …, with --store or --admin. Whoever could read them may have them.")
		}
	}
	switch {
	case len(l.Items) > 0:
		return errFound
	case l.Skipped > 0:
		return &failure{code: failed, what: fmt.Sprintf("%d files could not be read", l.Skipped), do: "Run it as a user who may read them."}
	}
	return nil
}

// endLeaks ends what was found, some at a time: the service takes a hundred credentials and a mebibyte of text at once.
func (a *app) endLeaks(ctx context.Context, l *leaks, reason string) error {
	s, err := a.connect(ctx, nil)
	if err != nil {
		return err
	}
	defer s.close()
	seen := map[string]bool{}
	var tokens []string
	for _, x := range l.Items {
		if !seen[x.token] {
			seen[x.token] = true
			tokens = append(tokens, x.token)
		}
	}
	if err := s.mayMake(); err != nil {
		return err
	}
	for chunk := range slices.Chunk(tokens, 50) {
		one, cancel := context.WithTimeout(ctx, a.timeout)
		n, err := s.RevokeLeaked(one, []byte(strings.Join(chunk, "\n")), reason)
		cancel()
		if l.Ended += n; err != nil {
			return err
		}
	}
	return nil
}

// directory hands out the files below a path.
func (s *scanner) directory(ctx context.Context, root string) error {
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			s.skip()
			return nil
		case !d.Type().IsRegular():
			return nil
		}
		return s.hand(ctx, place{path: path})
	})
}

func (s *scanner) hand(ctx context.Context, p place) error {
	select {
	case s.where <- p:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *scanner) skip() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.out.Skipped++
}

func (s *scanner) work() {
	defer s.wg.Done()
	buf := make([]byte, 1<<20)
	for p := range s.where {
		if err := s.look(p, buf); err != nil {
			s.skip()
		}
	}
}

func (s *scanner) look(p place, buf []byte) error {
	var in io.Reader = bytes.NewReader(p.content)
	if p.content == nil {
		f, err := os.Open(p.path)
		if err != nil {
			return err
		}
		defer f.Close()
		in = f
	}
	list, n, err := findIn(in, buf)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.out.Files++
	s.out.Bytes += n
	_ = s.bar.Add64(n) // only what is shown
	for _, x := range list {
		if len(s.out.Items) == maxLeaks {
			break
		}
		x.File, x.Blob = p.path, p.blob
		s.out.Items = append(s.out.Items, x)
	}
	return err
}

// overlap is more than the longest token has: what lies across the border of two reads is found in the second one.
const overlap = 256

// findIn finds tokens in a stream, with their lines, holding no more of it than buf.
func findIn(in io.Reader, buf []byte) (list []leak, read int64, err error) {
	have := 0         // of buf: the end of the part before
	start := int64(0) // the place of buf in the stream
	line := 1         // in which buf begins
	done := int64(0)  // up to here everything was found
	for {
		n, err := io.ReadFull(in, buf[have:])
		read += int64(n)
		text := buf[:have+n]
		at, l := 0, line
		for token := range opaque.Find(text) {
			from := cap(text) - cap(token) // token is a part of text
			if start+int64(from) < done {
				continue
			}
			l += bytes.Count(text[at:from], []byte{'\n'})
			at, done = from, start+int64(from+len(token))
			list = append(list, leakOf(string(token), l))
		}
		if err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				err = nil
			}
			return list, read, err
		}
		rest := len(text) - overlap
		line += bytes.Count(text[:rest], []byte{'\n'})
		have = copy(buf, text[rest:])
		start += int64(rest)
	}
}

func leakOf(token string, line int) leak {
	x := leak{Line: line, token: token, Start: opaque.Start(token)}
	if c, err := readToken(token); err == nil {
		x.Kind, x.ID = c.Kind, c.ID
	}
	return x
}

// git hands out every object of a repository: contents, and the messages of commits and tags. One process of git reads them.
func (s *scanner) git(ctx context.Context, dir string) error {
	check := exec.CommandContext(ctx, "git", "-C", dir, "rev-parse", "--git-dir")
	if out, err := check.CombinedOutput(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return &failure{code: failed, what: "git is not installed", do: "--git reads the history by it."}
		}
		return usage("Give the directory of a repository, or leave out --git.", "git: %s", strings.TrimSpace(string(out)))
	}
	c := exec.CommandContext(ctx, "git", "-C", dir, "cat-file", "--batch", "--batch-all-objects", "--unordered")
	c.WaitDelay = 5 * time.Second
	out, err := c.StdoutPipe()
	if err != nil {
		return err
	}
	if err := c.Start(); err != nil {
		return err
	}
	err = s.objects(ctx, bufio.NewReaderSize(out, 1<<20))
	if err != nil {
		_ = c.Process.Kill() // it would wait for a reader
	}
	return errors.Join(err, c.Wait())
}

// objects reads what git cat-file --batch writes: "<name> <type> <size>", the content, a newline.
func (s *scanner) objects(ctx context.Context, in *bufio.Reader) error {
	const most = 512 << 20 // of one object that is held in memory
	for {
		head, err := in.ReadString('\n')
		if errors.Is(err, io.EOF) && head == "" {
			return nil
		}
		if err != nil {
			return err
		}
		words := strings.Fields(head)
		if len(words) != 3 {
			return fmt.Errorf("git said %q", clean(head))
		}
		n, err := strconv.ParseInt(words[2], 10, 64)
		if err != nil || n < 0 {
			return fmt.Errorf("git said %q", clean(head))
		}
		if words[1] == "tree" || n > most {
			if n > most {
				s.skip()
			}
			if _, err := io.CopyN(io.Discard, in, n+1); err != nil {
				return err
			}
			continue
		}
		content := make([]byte, n+1)
		if _, err := io.ReadFull(in, content); err != nil {
			return err
		}
		if err := s.hand(ctx, place{path: words[1], blob: words[0], content: content[:n]}); err != nil {
			return err
		}
	}
}

// names gives contents that were found the paths under which they were committed; what nothing refers to has none.
func names(ctx context.Context, dir string, list []leak) error {
	wanted := map[string]string{}
	for _, x := range list {
		if x.File == "blob" {
			wanted[x.Blob] = ""
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	c := exec.CommandContext(ctx, "git", "-C", dir, "rev-list", "--objects", "--all", "--reflog")
	out, err := c.StdoutPipe()
	if err != nil {
		return err
	}
	if err := c.Start(); err != nil {
		return err
	}
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		id, path, _ := strings.Cut(lines.Text(), " ")
		if old, ok := wanted[id]; ok && old == "" {
			wanted[id] = path
		}
	}
	if err := errors.Join(lines.Err(), c.Wait()); err != nil {
		return err
	}
	for i := range list {
		if list[i].File == "blob" {
			list[i].File = or(wanted[list[i].Blob], "(no commit)")
		}
	}
	return nil
}
