package clientauth

import (
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/throttle"
)

const (
	MaxLive   = 2  // secrets of a client at once
	MinChosen = 16 // bytes of a secret that a host chooses

	maxChosen  = 512     // bytes of a secret that is hashed slowly
	slowRounds = 600_000 // of PBKDF2-HMAC-SHA256, OWASP 2023
	saltBytes  = 16

	// hashedMark begins the text of a hashed secret: hash function, rounds, then salt and hash, 48 bytes in base64.
	hashedMark = "pbkdf2-sha256$600000$"
)

// Secret is a stored verifier. For 256 random bits a plain hash is enough; a secret that a host chose gets a slow one.
type Secret struct {
	ID      []byte   `json:"id,omitempty"` // of a generated secret: what finds its client when it turns up somewhere
	Hash    [32]byte `json:"h"`
	Salt    []byte   `json:"salt,omitempty"` // of a slow hash
	Rounds  int      `json:"rounds,omitempty"`
	Created int64    `json:"created"`           // Unix ms
	Expires int64    `json:"expires,omitempty"` // Unix ms; 0: never
}

// Chosen reports whether a host chose the secret, so that its hash is slow.
func (x *Secret) Chosen() bool { return x.Rounds > 0 }

// Equal compares verifiers in constant time.
func (x *Secret) Equal(o *Secret) bool {
	return x.Rounds == o.Rounds && string(x.Salt) == string(o.Salt) && subtle.ConstantTimeCompare(x.Hash[:], o.Hash[:]) == 1
}

// Fits reports whether secret is the one that x is the slow verifier of. It takes a tenth of a second.
func (x *Secret) Fits(secret string) bool {
	sum, err := slowHash(secret, x.Salt, x.Rounds)
	return err == nil && subtle.ConstantTimeCompare(sum[:], x.Hash[:]) == 1
}

func slowHash(secret string, salt []byte, rounds int) (out [32]byte, _ error) {
	key, err := pbkdf2.Key(sha256.New, secret, salt, rounds, len(out))
	if err != nil {
		return out, fault.NoAnswer(err, "slow hash")
	}
	copy(out[:], key)
	return out, nil
}

// NewChosen makes the verifier of a secret that a host chose.
func NewChosen(secret string, now time.Time) (Secret, error) {
	x := Secret{Salt: make([]byte, saltBytes), Rounds: slowRounds, Created: now.UnixMilli()}
	rand.Read(x.Salt)
	sum, err := slowHash(secret, x.Salt, x.Rounds)
	x.Hash = sum
	return x, err
}

// Text is a slow verifier as a configuration file holds it.
func (x *Secret) Text() string {
	return hashedMark + base64.StdEncoding.EncodeToString(append(slices.Clone(x.Salt), x.Hash[:]...))
}

// Parse reads what Text made. ok: text is of that form, damaged or not.
func Parse(text string) (x Secret, ok bool, _ error) {
	rest, ok := strings.CutPrefix(text, hashedMark)
	if !ok {
		return x, false, nil
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(rest)
	if err != nil || len(raw) != saltBytes+32 {
		return x, true, fault.Fail(fault.InvalidRequest, "a hashed secret is damaged")
	}
	return Secret{Hash: [32]byte(raw[saltBytes:]), Salt: raw[:saltBytes:saltBytes], Rounds: slowRounds}, true, nil
}

// Match finds the plain hash among a client's verifiers, in a time that depends on none of them; -1: it is not there.
func Match(live []Secret, hash [32]byte) int {
	found, decoy := -1, Secret{}
	for i := range MaxLive {
		x, real := &decoy, i < len(live) && !live[i].Chosen()
		if real {
			x = &live[i]
		}
		if subtle.ConstantTimeCompare(hash[:], x.Hash[:]) == 1 && real {
			found = i
		}
	}
	return found
}

// Checker compares secrets that hosts chose. Use NewChecker.
type Checker struct {
	Failures throttle.Table // by client and source

	queue *queue
	key   [32]byte // of this process, for marks
}

// NewChecker returns a Checker that runs slow hashes on half of the processors.
func NewChecker() *Checker {
	c := &Checker{queue: newQueue()}
	rand.Read(c.key[:])
	return c
}

// Proved remembers the secret of a client that was right last, so that it need not be hashed slowly again: a MAC of it, and
// the verifier that it fitted, with which it ends.
type Proved struct{ mark, hash [32]byte }

// Attempt is a secret that somebody presents as a client's.
type Attempt struct {
	Name   throttle.Name // the client, and the source of the request
	Secret string
	Live   []Secret                // the client's; none for a client that doesn't exist
	Proved *atomic.Pointer[Proved] // the client's; of any other for one that doesn't exist
	Skip   bool                    // no client has a chosen secret: no name has to look like one that has
	Now    func() time.Time
}

// Check returns the index of the verifier that the secret fits, or -1. fault.Limited: too many wait; fault.Unavailable: ctx
// ended meanwhile.
func (c *Checker) Check(ctx context.Context, a Attempt) (int, error) {
	if a.Secret == "" || len(a.Secret) > maxChosen {
		return -1, nil
	}
	mark := c.mark(a.Name.Who, a.Secret)
	if p := a.Proved.Load(); p != nil && hmac.Equal(p.mark[:], mark[:]) {
		return slices.IndexFunc(a.Live, func(x Secret) bool { return x.Hash == p.hash }), nil
	}
	if a.Skip || c.Failures.Over(a.Name, a.Now()) { // no slow hash for whoever has failed too often
		return -1, nil
	}

	known := slices.ContainsFunc(a.Live, func(x Secret) bool { return x.Chosen() })
	if err := c.queue.enter(ctx, a.Name.Who, known); err != nil {
		return -1, err
	}
	held := true
	defer func() {
		if held {
			c.queue.leave()
		}
	}()
	if c.Failures.Over(a.Name, a.Now()) { // by those who waited in front
		return -1, nil
	}

	// Two live secrets take two slow hashes. So does every second name, and nobody knows which: the time doesn't tell
	// whether there is such a client.
	look := c.mark(a.Name.Who, "")
	found, salt := -1, make([]byte, saltBytes)
	for i := range MaxLive {
		x := Secret{Salt: salt, Rounds: slowRounds}
		real := i < len(a.Live) && a.Live[i].Chosen()
		if real {
			x = a.Live[i]
		} else if i > 0 && look[0]%2 == 0 {
			break
		}
		if i > 0 && !known {
			if err := c.queue.pause(ctx); err != nil {
				held = false
				return -1, err
			}
		}
		if x.Fits(a.Secret) && real {
			found = i
			a.Proved.Store(&Proved{mark, x.Hash})
		}
	}
	return found, nil
}

// mark is a MAC of a client's secret under a key of this process.
func (c *Checker) mark(client, secret string) [32]byte {
	m := hmac.New(sha256.New, c.key[:])
	m.Write([]byte(client))
	m.Write([]byte{0})
	m.Write([]byte(secret))
	return [32]byte(m.Sum(nil))
}
