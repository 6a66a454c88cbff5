package ledger

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// A witness remembers the newest checkpoint of a log and co-signs a newer one only when it is proved to continue that one. With
// its signature a reader knows that nobody was shown another history. The protocol is C2SP tlog-witness.

// Witness is a witness as a Ledger sees it.
type Witness struct {
	Key    note.Verifier
	Client WitnessClient
}

// WitnessClient asks a witness. [NewHTTPWitness] makes one, and a [WitnessServer] in the same process is one.
type WitnessClient interface {
	// AddCheckpoint shows that signed continues the log of old records, which the witness has seen last, and returns the
	// lines of its signatures. A [WitnessConflict] says that the witness has seen another size last.
	AddCheckpoint(ctx context.Context, old int64, proof tlog.TreeProof, signed []byte) ([]byte, error)
}

// WitnessConflict is the answer of a witness that has seen a log of another size last.
type WitnessConflict struct{ Size int64 }

// Error says what it has seen.
func (e *WitnessConflict) Error() string {
	return fmt.Sprintf("ledger: the witness has seen %d records of this log", e.Size)
}

// sameKey reports whether two witnesses are one.
func sameKey(list []Witness) bool {
	for i, a := range list {
		for _, b := range list[:i] {
			if a.Key.Name() == b.Key.Name() && a.Key.KeyHash() == b.Key.KeyHash() {
				return true
			}
		}
	}
	return false
}

const cosignTimeout = 10 * time.Second

// cosigned reports whether a stored checkpoint has the co-signatures that it needs.
func (l *Ledger) cosigned(signed []byte) bool {
	n, _ := l.readCosigned(signed)
	return n >= max(l.cfg.Quorum, min(1, len(l.cfg.Witnesses)))
}

func (l *Ledger) readCosigned(signed []byte) (int, error) {
	keys := make([]note.Verifier, 0, len(l.cfg.Witnesses))
	for _, w := range l.cfg.Witnesses {
		keys = append(keys, w.Key)
	}
	n, err := note.Open(signed, note.VerifierList(keys...))
	var unverified *note.UnverifiedNoteError
	switch {
	case errors.As(err, &unverified):
		return 0, nil
	case err != nil:
		return 0, err
	}
	return len(n.Sigs), nil
}

// askWitnesses gathers co-signatures behind the sealing.
func (l *Ledger) askWitnesses(ctx context.Context) {
	again := false
	for {
		t := time.NewTimer(l.cfg.Interval)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-l.fresh:
		case <-t.C:
			if !again {
				continue
			}
		}
		t.Stop()
		signed, c, err := l.last(ctx)
		if err == nil {
			_, err = l.cosign(ctx, c, signed)
		}
		if again = err != nil; again && ctx.Err() == nil {
			l.log.Warn("ledger: a checkpoint is not co-signed", "error", err)
		}
	}
}

// cosign asks all witnesses at once, keeps what they answer, and gives the checkpoint to the publishers.
func (l *Ledger) cosign(ctx context.Context, c Checkpoint, signed []byte) ([]byte, error) {
	select {
	case l.asking <- struct{}{}:
		defer func() { <-l.asking }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	list, err := l.cfg.Storage.Checkpoints(ctx, c.Size, 1)
	if err != nil {
		return nil, err
	}
	if len(list) == 1 {
		if own, err := l.parseOwn(list[0]); err == nil && own == c && l.cosigned(list[0]) {
			return list[0], nil // done before, or another caller was first
		}
	}
	actx, cancel := context.WithTimeout(ctx, cosignTimeout)
	defer cancel()
	type answer struct {
		lines []byte
		err   error
	}
	answers := make(chan answer, len(l.cfg.Witnesses))
	for i, w := range l.cfg.Witnesses {
		select {
		case l.busy[i] <- struct{}{}:
		default: // one that does not look at its context must not gather goroutines
			answers <- answer{err: fmt.Errorf("witness %s has not come back from an earlier call", w.Key.Name())}
			continue
		}
		go func() {
			var a answer
			defer func() {
				if p := recover(); p != nil {
					a = answer{err: fmt.Errorf("the witness panicked: %v", p)}
				}
				<-l.busy[i] // before the answer: whoever has it may ask again
				answers <- a
			}()
			a.lines, a.err = l.ask(actx, w, c, signed)
		}()
	}
	out := bytes.Clone(signed)
	got := 0
	var errs []error
	for range l.cfg.Witnesses {
		select {
		case a := <-answers:
			if a.err != nil {
				errs = append(errs, a.err)
				continue
			}
			out = append(out, a.lines...)
			got++
		case <-actx.Done():
			errs = append(errs, errors.New("a witness did not answer in time"))
		}
	}
	if got < max(l.cfg.Quorum, 1) {
		return nil, fmt.Errorf("ledger: %d of %d witnesses co-signed: %w", got, len(l.cfg.Witnesses), errors.Join(errs...))
	}
	if err := l.take(ctx); err != nil {
		return nil, err
	}
	err = l.cfg.Storage.PutCheckpoint(ctx, c.Size, out)
	l.give()
	if err != nil {
		return nil, err
	}
	l.offer(c.Size, out)
	return out, nil
}

// ask shows one witness the checkpoint, from the size that it has seen.
func (l *Ledger) ask(ctx context.Context, w Witness, c Checkpoint, signed []byte) ([]byte, error) {
	old := int64(0)
	for range 3 { // it tells the size, and may move once meanwhile
		proof, err := l.ProveConsistency(ctx, old, c.Size)
		if err != nil {
			return nil, err
		}
		lines, err := w.Client.AddCheckpoint(ctx, old, proof.Hashes, signed)
		var conflict *WitnessConflict
		if errors.As(err, &conflict) && conflict.Size != old {
			if conflict.Size > c.Size {
				return nil, fmt.Errorf("witness %s: %w, and this log has %d", w.Key.Name(), err, c.Size)
			}
			old = conflict.Size
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("witness %s: %w", w.Key.Name(), err)
		}
		return w.pick(c, lines)
	}
	return nil, fmt.Errorf("witness %s does not say which size it has seen", w.Key.Name())
}

// pick returns the witness's own signature out of what it answered.
func (w *Witness) pick(c Checkpoint, lines []byte) ([]byte, error) {
	n, err := note.Open(append([]byte(c.Text()+"\n"), lines...), note.VerifierList(w.Key))
	if err != nil || len(n.Sigs) != 1 {
		return nil, fmt.Errorf("witness %s answered without its signature", w.Key.Name())
	}
	return []byte("\u2014 " + n.Sigs[0].Name + " " + n.Sigs[0].Base64 + "\n"), nil
}

// WitnessServer is a witness. It is an http.Handler of POST …/add-checkpoint, and a WitnessClient for its own process.
type WitnessServer struct {
	signer note.Signer
	logs   map[string]note.Verifier
	dir    string
	mu     sync.Mutex // one checkpoint at a time: what it co-signed is durable before the signature leaves
}

// NewWitness makes a witness of some logs. signer is best one of [NewCosigner]. In dir it keeps what it has seen, and a dir that was put
// back to an older state makes it co-sign twice: keep it where the log's host cannot write.
func NewWitness(signer note.Signer, dir string, logs ...note.Verifier) (*WitnessServer, error) {
	if signer == nil || dir == "" || len(logs) == 0 {
		return nil, errors.New("ledger: a witness needs a signer, a directory, and the keys of logs")
	}
	w := &WitnessServer{signer: signer, logs: map[string]note.Verifier{}, dir: dir}
	for _, v := range logs {
		if v == nil || w.logs[v.Name()] != nil {
			return nil, errors.New("ledger: a witness needs one key for each log")
		}
		w.logs[v.Name()] = v
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("ledger: %w", err)
	}
	return w, nil
}

// What a witness refuses.
var (
	errUnknownLog = errors.New("ledger: the witness does not know this log")
	errNotTheLog  = errors.New("ledger: the checkpoint is not signed by the log")
	errBadRequest = errors.New("ledger: the request to the witness does not read")
	errBadProof   = errors.New("ledger: the checkpoint does not continue the log that the witness has seen")
)

// seen is what a witness keeps of a log.
type seen struct {
	Size int64     `json:"size"`
	Root tlog.Hash `json:"root"`
}

func (w *WitnessServer) path(origin string) string {
	sum := sha256.Sum256([]byte(origin))
	return filepath.Join(w.dir, hex.EncodeToString(sum[:16])+".json")
}

func (w *WitnessServer) load(origin string) (seen, error) {
	s := seen{Root: (&frontier{}).root()}
	b, err := os.ReadFile(w.path(origin))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return s, nil
	case err == nil:
		err = json.Unmarshal(b, &s)
	}
	if err != nil {
		return s, fmt.Errorf("ledger: what the witness has seen: %w", err)
	}
	return s, nil
}

func (w *WitnessServer) store(origin string, s seen) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(w.dir, ".seen-*")
	if err != nil {
		return fmt.Errorf("ledger: %w", err)
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), w.path(origin))
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("ledger: %w", err)
	}
	return syncDir(w.dir)
}

// AddCheckpoint implements [WitnessClient].
func (w *WitnessServer) AddCheckpoint(ctx context.Context, old int64, proof tlog.TreeProof, signed []byte) ([]byte, error) {
	origin, _, _ := strings.Cut(string(signed), "\n")
	key := w.logs[origin]
	if key == nil {
		return nil, errUnknownLog
	}
	c, err := Keys{Log: []note.Verifier{key}}.Open(signed)
	if err != nil {
		return nil, errNotTheLog
	}
	if old < 0 || old > c.Size {
		return nil, errBadRequest
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	last, err := w.load(origin)
	if err != nil {
		return nil, err
	}
	if old != last.Size {
		return nil, &WitnessConflict{last.Size}
	}
	switch {
	case last.Size == c.Size && last.Root != c.Root:
		return nil, &WitnessConflict{last.Size} // two histories of one size: C2SP answers as for another size
	case last.Size == c.Size || last.Size == 0:
		if len(proof) != 0 {
			return nil, errBadProof
		}
	default:
		if tlog.CheckTree(proof, c.Size, c.Root, last.Size, last.Root) != nil {
			return nil, errBadProof
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if last.Size != c.Size {
		if err := w.store(origin, seen{c.Size, c.Root}); err != nil {
			return nil, err
		}
	}
	n := &note.Note{Text: string(signed[:bytes.LastIndex(signed, []byte("\n\n"))+1])} // as note.Open cuts it
	out, err := note.Sign(n, w.signer)
	if err != nil {
		return nil, fmt.Errorf("ledger: co-sign: %w", err)
	}
	return out[len(n.Text)+1:], nil
}

const maxWitnessRequest = 64 << 10

// ServeHTTP implements http.Handler by C2SP tlog-witness.
func (w *WitnessServer) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		rw.Header().Set("Allow", http.MethodPost)
		http.Error(rw, "POST a checkpoint", http.StatusMethodNotAllowed)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(rw, r.Body, maxWitnessRequest))
	if err != nil {
		http.Error(rw, "the request is too large or was cut off", http.StatusBadRequest)
		return
	}
	old, proof, signed, err := readWitnessRequest(body)
	var lines []byte
	if err == nil {
		lines, err = w.AddCheckpoint(r.Context(), old, proof, signed)
	}
	var conflict *WitnessConflict
	switch {
	case err == nil:
		rw.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = rw.Write(lines)
	case errors.As(err, &conflict):
		rw.Header().Set("Content-Type", "text/x.tlog.size")
		rw.WriteHeader(http.StatusConflict)
		fmt.Fprintf(rw, "%d\n", conflict.Size)
	case errors.Is(err, errUnknownLog):
		http.Error(rw, err.Error(), http.StatusNotFound)
	case errors.Is(err, errNotTheLog):
		http.Error(rw, err.Error(), http.StatusForbidden)
	case errors.Is(err, errBadRequest):
		http.Error(rw, err.Error(), http.StatusBadRequest)
	case errors.Is(err, errBadProof):
		http.Error(rw, err.Error(), http.StatusUnprocessableEntity)
	default:
		http.Error(rw, "the witness cannot answer now", http.StatusServiceUnavailable)
	}
}

// readWitnessRequest reads "old N", base64 hashes in lines of their own, an empty line, and the checkpoint.
func readWitnessRequest(body []byte) (old int64, proof tlog.TreeProof, signed []byte, err error) {
	head, signed, ok := bytes.Cut(body, []byte("\n\n"))
	if !ok {
		return 0, nil, nil, errBadRequest
	}
	lines := strings.Split(string(head), "\n")
	n, ok := strings.CutPrefix(lines[0], "old ")
	if old, err = strconv.ParseInt(n, 10, 64); !ok || err != nil || strconv.FormatInt(old, 10) != n || len(lines) > 64 {
		return 0, nil, nil, errBadRequest
	}
	for _, line := range lines[1:] {
		h, err := tlog.ParseHash(line)
		if err != nil {
			return 0, nil, nil, errBadRequest
		}
		proof = append(proof, h)
	}
	return old, proof, signed, nil
}

// NewHTTPWitness asks the witness whose add-checkpoint endpoint is at url. A nil client is http.DefaultClient.
func NewHTTPWitness(url string, client *http.Client) WitnessClient {
	if client == nil {
		client = http.DefaultClient
	}
	return &httpWitness{url, client}
}

type httpWitness struct {
	url    string
	client *http.Client
}

func (w *httpWitness) AddCheckpoint(ctx context.Context, old int64, proof tlog.TreeProof, signed []byte) ([]byte, error) {
	var body bytes.Buffer
	fmt.Fprintf(&body, "old %d\n", old)
	for _, h := range proof {
		body.WriteString(h.String() + "\n")
	}
	body.WriteByte('\n')
	body.Write(signed)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url, &body)
	if err != nil {
		return nil, fmt.Errorf("ledger: %w", err)
	}
	res, err := w.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ledger: %w", err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(bufio.NewReader(res.Body), maxWitnessRequest))
	if err != nil {
		return nil, fmt.Errorf("ledger: %w", err)
	}
	switch {
	case res.StatusCode == http.StatusOK:
		return answer, nil
	case res.StatusCode == http.StatusConflict && res.Header.Get("Content-Type") == "text/x.tlog.size":
		n, err := strconv.ParseInt(strings.TrimSpace(string(answer)), 10, 64)
		if err != nil || n < 0 {
			return nil, errors.New("ledger: the witness answered with a size that does not read")
		}
		return nil, &WitnessConflict{n}
	}
	return nil, fmt.Errorf("ledger: the witness answered %s", res.Status)
}
