package ledger

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/internal/boltfile"
)

// A Vault is three files. lock keeps other processes out. keys.json holds key-encryption keys, each sealed by the host's
// apitoken.Sealer. persons holds a slot of 128 bytes for each person there ever was: a MAC of the name to find it by, the
// person's pseudonym, and the person's data key under a key-encryption key. A slot lies within one sector, so that it is written whole or not at all, and an erased one is
// overwritten in place with zeros.

// Vault holds one data key for each person that the log speaks of. Keep it away from copies of the log, and keep its own backups
// no longer than an erased person may still be read from them.
type Vault struct {
	path string
	seal apitoken.Sealer

	mu    sync.Mutex   // guards all below
	lock  *boltfile.DB // for its lock alone
	file  *os.File
	kept  vaultKeys
	keks  map[uint32]cipher.AEAD
	mac   []byte                     // key of the MAC over names
	slots map[[personMAC]byte]uint32 // about 40 bytes in memory for a person
	count uint32                     // slots in the file
	known map[string]person          // opened lately, at most knownPersons
	bad   int

	// What no sync has confirmed. After one that failed the kernel takes it for written, so that it is written again.
	fresh  []uint32 // slots of new persons
	zeroed []uint32 // slots of erased ones
	again  bool
	fsync  func(*os.File) error      // tests make it fail
	wrote  func(offset int64, n int) // tests look on
}

const (
	slotSize  = 128
	personMAC = 16
	dataKey   = 32

	knownPersons = 4096

	vaultLockTimeout = time.Second // for another one to close
)

// vaultKeys is keys.json.
type vaultKeys struct {
	V       int         `json:"v"`
	MAC     []byte      `json:"mac"` // sealed
	Current uint32      `json:"current"`
	Keys    []sealedKEK `json:"keys"`
}

type sealedKEK struct {
	ID     uint32 `json:"id"`
	Sealed []byte `json:"sealed"`
}

// slot is a person's entry. The layout: version 1, kek 4, mac 16, random 12, nonce 12, key 48, crc 4, zeros.
type slot struct {
	kek    uint32
	mac    [personMAC]byte
	random [12]byte // of the pseudonym, whose other part is the slot's number
	nonce  [12]byte
	key    [dataKey + 16]byte
}

const slotBody = 1 + 4 + personMAC + 12 + 12 + dataKey + 16

func (s *slot) bytes() []byte {
	b := make([]byte, 0, slotSize)
	b = append(b, 1)
	b = binary.BigEndian.AppendUint32(b, s.kek)
	b = append(append(append(append(b, s.mac[:]...), s.random[:]...), s.nonce[:]...), s.key[:]...)
	b = binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
	return b[:slotSize]
}

// readSlot tells a slot from an erased one, and from one that is neither.
func readSlot(b []byte) (s slot, used, ok bool) {
	if [slotSize]byte(b) == ([slotSize]byte{}) {
		return s, false, true
	}
	if b[0] != 1 || crc32.ChecksumIEEE(b[:slotBody]) != binary.BigEndian.Uint32(b[slotBody:]) {
		return s, false, false
	}
	s.kek = binary.BigEndian.Uint32(b[1:])
	b = b[5:]
	b = b[copy(s.mac[:], b):]
	b = b[copy(s.random[:], b):]
	b = b[copy(s.nonce[:], b):]
	copy(s.key[:], b)
	return s, true, true
}

// OpenVault opens the vault in a directory of its own, or makes it. seal is asked here and in [Vault.Rotate] only, and best is not
// the service's own. It fails when a vault is open already, here or in another process: one that erased a person beside
// its ledger would be overheard.
func OpenVault(ctx context.Context, path string, seal apitoken.Sealer) (*Vault, error) {
	if seal == nil {
		return nil, errors.New("ledger: a vault needs a Sealer: persons' keys do not lie in clear")
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("ledger: %w", err)
	}
	v := &Vault{path: path, seal: seal, keks: map[uint32]cipher.AEAD{}, slots: map[[personMAC]byte]uint32{}, known: map[string]person{},
		fsync: (*os.File).Sync, wrote: func(int64, int) {}}
	if err := v.open(ctx); err != nil {
		_ = v.Close()
		return nil, err
	}
	return v, nil
}

func (v *Vault) open(ctx context.Context) error {
	if err := v.takeLock(); err != nil {
		return err
	}
	data, err := os.ReadFile(filepath.Join(v.path, "keys.json"))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if info, err := os.Stat(filepath.Join(v.path, "persons")); err == nil && info.Size() > 0 {
			return fmt.Errorf("ledger: %s holds persons' keys and no keys.json that opens them: bring it back from its backup", v.path)
		}
		if err := v.create(ctx); err != nil {
			return err
		}
	case err != nil:
		return fmt.Errorf("ledger: %w", err)
	default:
		if err := json.Unmarshal(data, &v.kept); err != nil || v.kept.V != 1 {
			return fmt.Errorf("ledger: %s does not read as a vault's keys", filepath.Join(v.path, "keys.json"))
		}
		if v.mac, err = v.seal.Open(ctx, v.kept.MAC, []byte("apitoken ledger vault mac")); err != nil {
			return fmt.Errorf("ledger: open the vault: %w", err)
		}
		for _, k := range v.kept.Keys {
			raw, err := v.seal.Open(ctx, k.Sealed, kekContext(k.ID))
			if err != nil {
				return fmt.Errorf("ledger: open the vault: %w", err)
			}
			if v.keks[k.ID], err = newGCM(raw); err != nil {
				return err
			}
		}
		if v.keks[v.kept.Current] == nil {
			return errors.New("ledger: the vault lacks its current key-encryption key")
		}
	}
	if v.file, err = os.OpenFile(filepath.Join(v.path, "persons"), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return fmt.Errorf("ledger: %w", err)
	}
	if err := v.load(); err != nil {
		return err
	}
	return syncDir(v.path)
}

// takeLock keeps others out until Close.
func (v *Vault) takeLock() error {
	path := filepath.Join(v.path, "lock")
	open := func() (err error) {
		v.lock, err = boltfile.Open(path, boltfile.Options{Timeout: vaultLockTimeout, Trusted: true})
		return err
	}
	err := open()
	if errors.Is(err, boltfile.ErrDamaged) {
		// A power failure left a part of it; it holds nothing, and whoever reads it had the lock.
		if err = os.Truncate(path, 0); err == nil {
			err = open()
		}
	}
	switch {
	case errors.Is(err, boltfile.ErrLocked):
		return fmt.Errorf("ledger: the vault %s is open already", v.path)
	case err != nil:
		return fmt.Errorf("ledger: %s: %w", path, err)
	}
	return nil
}

func kekContext(id uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte("apitoken ledger vault kek\x00"), id)
}

func newGCM(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("ledger: %w", err)
	}
	return cipher.NewGCM(block)
}

func (v *Vault) create(ctx context.Context) error {
	v.mac = make([]byte, 32)
	rand.Read(v.mac)
	sealed, err := v.seal.Seal(ctx, v.mac, []byte("apitoken ledger vault mac"))
	if err != nil {
		return fmt.Errorf("ledger: make the vault: %w", err)
	}
	v.kept = vaultKeys{V: 1, MAC: sealed}
	return v.addKEK(ctx)
}

// addKEK makes a new key-encryption key the current one, and keeps it.
func (v *Vault) addKEK(ctx context.Context) error {
	raw := make([]byte, 32)
	rand.Read(raw)
	kept := v.kept
	kept.Current++
	sealed, err := v.seal.Seal(ctx, raw, kekContext(kept.Current))
	if err != nil {
		return fmt.Errorf("ledger: seal a key-encryption key: %w", err)
	}
	aead, err := newGCM(raw)
	if err != nil {
		return err
	}
	kept.Keys = append(kept.Keys[:len(kept.Keys):len(kept.Keys)], sealedKEK{kept.Current, sealed})
	if err := v.writeKeys(kept); err != nil {
		return err
	}
	v.kept, v.keks[kept.Current] = kept, aead
	return nil
}

func (v *Vault) writeKeys(kept vaultKeys) error {
	data, err := json.Marshal(kept)
	if err != nil {
		return err
	}
	path := filepath.Join(v.path, "keys.json")
	f, err := os.OpenFile(path+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("ledger: %w", err)
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(path+".tmp", path)
	}
	if err != nil {
		return fmt.Errorf("ledger: %w", err)
	}
	return syncDir(v.path)
}

// load reads the slots. One that a crash left half-written was never counted on: persons are synced before the lines that
// refer to them.
func (v *Vault) load() error {
	info, err := v.file.Stat()
	if err != nil {
		return fmt.Errorf("ledger: %w", err)
	}
	n := info.Size() / slotSize
	if n > math.MaxUint32-1 {
		return errors.New("ledger: the vault is too large")
	}
	buf := make([]byte, 1024*slotSize)
	for at := int64(0); at < n; {
		part := buf[:min(1024, n-at)*slotSize]
		if _, err := v.file.ReadAt(part, at*slotSize); err != nil {
			return fmt.Errorf("ledger: %w", err)
		}
		for ; len(part) > 0; part = part[slotSize:] {
			s, used, ok := readSlot(part[:slotSize])
			if used {
				v.slots[s.mac] = uint32(at)
			}
			if !ok {
				v.bad++
			}
			at++
		}
	}
	v.count = uint32(n)
	return nil
}

// Damaged tells how many persons' keys could not be read when the vault was opened: those persons are as if erased. One is
// what a crash may leave of a person that no record speaks of yet.
func (v *Vault) Damaged() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.bad
}

// Persons tells how many have a key.
func (v *Vault) Persons() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.slots)
}

// person is a data key and the pseudonym that goes with it.
type person struct {
	ref string
	key []byte
}

func (v *Vault) find(name string) [personMAC]byte {
	m := hmac.New(sha256.New, v.mac)
	m.Write([]byte(name))
	var sum [sha256.Size]byte
	return [personMAC]byte(m.Sum(sum[:0]))
}

func refOf(at uint32, s *slot) string {
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 16), at)
	return base64.RawURLEncoding.EncodeToString(append(b, s.random[:]...))
}

func slotContext(at uint32, s *slot) []byte {
	b := binary.BigEndian.AppendUint32([]byte("person"), at)
	return append(append(b, s.mac[:]...), s.random[:]...)
}

// Names of persons: what an event calls subject or actor, with the issuer if it is not the service itself, and addresses of
// events that name nobody.
func named(issuer, subject string) string {
	if issuer == "" {
		return "s\x00" + subject
	}
	return "f\x00" + issuer + "\x00" + subject
}

func addressed(address netip.Addr) string { return "a\x00" + address.Unmap().WithZone("").String() }

func (v *Vault) readAt(at uint32) (s slot, ok bool, err error) {
	var b [slotSize]byte
	if _, err := v.file.ReadAt(b[:], int64(at)*slotSize); err != nil {
		return s, false, fmt.Errorf("ledger: %w", err)
	}
	s, used, _ := readSlot(b[:])
	return s, used, nil
}

func (v *Vault) openSlot(at uint32, s *slot) (person, error) {
	aead := v.keks[s.kek]
	if aead == nil {
		return person{}, fmt.Errorf("ledger: key-encryption key %d of the vault is gone", s.kek)
	}
	key, err := aead.Open(nil, s.nonce[:], s.key[:], slotContext(at, s))
	if err != nil {
		return person{}, errors.New("ledger: a person's key in the vault was altered")
	}
	return person{refOf(at, s), key}, nil
}

// person returns the key of a name; a new one is durable after sync. The caller holds mu.
func (v *Vault) person(name string) (person, error) {
	if p, ok := v.known[name]; ok {
		return p, nil
	}
	p, err := v.findOrMake(name)
	if err == nil {
		if len(v.known) >= knownPersons {
			clear(v.known)
		}
		v.known[name] = p
	}
	return p, err
}

func (v *Vault) findOrMake(name string) (person, error) {
	mac := v.find(name)
	if at, ok := v.slots[mac]; ok {
		s, used, err := v.readAt(at)
		if err != nil {
			return person{}, err
		}
		if used && s.mac == mac {
			return v.openSlot(at, &s)
		}
		delete(v.slots, mac) // destroyed from outside: as if erased
	}
	// A slot is used once: its number stands in the pseudonym, and whoever came next into an erased person's would be
	// taken for that person, who it often is.
	at := v.count
	s := slot{mac: mac}
	rand.Read(s.random[:])
	key := make([]byte, dataKey)
	rand.Read(key)
	v.sealSlot(at, &s, key)
	if err := v.write(at, s.bytes()); err != nil {
		return person{}, err
	}
	v.count++
	v.slots[mac], v.fresh = at, append(v.fresh, at)
	return person{refOf(at, &s), key}, nil
}

func (v *Vault) sealSlot(at uint32, s *slot, key []byte) {
	s.kek = v.kept.Current
	rand.Read(s.nonce[:])
	v.keks[s.kek].Seal(s.key[:0], s.nonce[:], key, slotContext(at, s))
}

// sync makes new persons durable. Before it, no line that speaks of them is.
func (v *Vault) sync() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.fresh)+len(v.zeroed) == 0 {
		return nil
	}
	return v.flush()
}

// flush makes all that was written durable. The caller holds mu.
func (v *Vault) flush() error {
	if v.again {
		for _, at := range v.fresh {
			var b [slotSize]byte
			if _, err := v.file.ReadAt(b[:], int64(at)*slotSize); err != nil {
				return fmt.Errorf("ledger: %w", err)
			}
			if err := v.write(at, b[:]); err != nil {
				return err
			}
		}
		for _, at := range v.zeroed {
			if err := v.write(at, make([]byte, slotSize)); err != nil {
				return err
			}
		}
	}
	if err := v.fsync(v.file); err != nil {
		v.again = true
		return fmt.Errorf("ledger: %w", err)
	}
	v.fresh, v.zeroed, v.again = nil, nil, false
	return nil
}

func (v *Vault) write(at uint32, slot []byte) error {
	if _, err := v.file.WriteAt(slot, int64(at)*slotSize); err != nil {
		return fmt.Errorf("ledger: %w", err)
	}
	v.wrote(int64(at)*slotSize, len(slot))
	return nil
}

// Erase destroys the key of a subject, who may have been an actor too. What the log says of that person cannot be read from
// then on, by anybody, and verifies as before. It reports whether there was a key. Events about the same
// subject that come later get a new pseudonym and key.
//
// First end what the person holds (apitoken.BySubject) and let [Ledger.Seal] take in what there is: what is sealed later is not
// erased, and by the ID of a grant or an API key that lives on it would tell whose the earlier records are.
//
// Not erased are names that somebody wrote into the free text of an event that neither is about that person nor was caused by
// them: its reason, in the main. On a file system that keeps old blocks (snapshots, copy on write, flash) the overwritten
// slot may be found until they are reused; what makes it useless is [Vault.Rotate], once the Sealer's key that was current
// before is destroyed too.
func (v *Vault) Erase(ctx context.Context, subject string) (bool, error) {
	return v.erase(ctx, named("", subject))
}

// EraseForeign is [Vault.Erase] for a subject of another trusted issuer, by the name that apitoken.Event.Issuer has for it. It
// leaves a subject of the service's own with the same name alone. Records from before events named issuers keep both under the
// key of the service's own.
func (v *Vault) EraseForeign(ctx context.Context, issuer, subject string) (bool, error) {
	if issuer == "" {
		return false, errors.New("ledger: EraseForeign needs an issuer; Erase is for the service's own subjects")
	}
	return v.erase(ctx, named(issuer, subject))
}

// EraseAddress is Erase for events that name neither subject nor actor, and for alerts without a subject: by the address
// they came from. The zero Addr stands for all those without one, such as refusals that were summed up, which hold
// addresses as evidence.
func (v *Vault) EraseAddress(ctx context.Context, address netip.Addr) (bool, error) {
	return v.erase(ctx, addressed(address))
}

func (v *Vault) erase(ctx context.Context, name string) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	mac := v.find(name)
	at, ok := v.slots[mac]
	if !ok {
		return false, nil
	}
	delete(v.known, name) // whatever comes of it: nothing is sealed under a key that may be gone
	if err := v.write(at, make([]byte, slotSize)); err != nil {
		return false, err
	}
	v.zeroed = append(v.zeroed, at)
	if err := v.flush(); err != nil {
		return false, err
	}
	delete(v.slots, mac)
	return true, nil
}

// Rotate seals every person's key under a new key-encryption key, seals that by the Sealer's current key, and forgets the older
// ones. Run it at the host's rhythm, and before an old key of the Sealer is dropped. Sealing events waits for it: about
// 5 µs for a person.
func (v *Vault) Rotate(ctx context.Context) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.addKEK(ctx); err != nil {
		return err
	}
	for mac, at := range v.slots {
		if err := ctx.Err(); err != nil {
			return err // both keys stay; the next Rotate goes on
		}
		s, used, err := v.readAt(at)
		if err != nil {
			return err
		}
		if !used || s.mac != mac || s.kek == v.kept.Current {
			continue
		}
		p, err := v.openSlot(at, &s)
		if err != nil {
			return err
		}
		v.sealSlot(at, &s, p.key)
		if err := v.write(at, s.bytes()); err != nil {
			return err
		}
	}
	if err := v.flush(); err != nil {
		return err
	}
	kept := v.kept
	var err error
	if kept.MAC, err = v.seal.Seal(ctx, v.mac, []byte("apitoken ledger vault mac")); err != nil {
		return fmt.Errorf("ledger: %w", err)
	}
	kept.Keys = kept.Keys[len(kept.Keys)-1:]
	if err := v.writeKeys(kept); err != nil {
		return err
	}
	v.kept = kept
	for id := range v.keks {
		if id != kept.Current {
			delete(v.keks, id)
		}
	}
	return nil
}

// Close closes the files. The Ledger that uses the vault is closed first.
func (v *Vault) Close() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	var err error
	if v.file != nil {
		err = errors.Join(v.flush(), v.file.Close())
	}
	if v.lock != nil {
		err = errors.Join(err, v.lock.Close())
	}
	v.file, v.lock = nil, nil
	return err
}
