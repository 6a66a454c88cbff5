package opaque

import (
	"bytes"
	"crypto/rand"
	"encoding/base32"
	"encoding/hex"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var kinds = []Kind{Refresh, APIKey, Ticket, ClientSecret}

// some is a token of kind whose payload is full of b.
func some(prefix string, kind Kind, b byte) string {
	if kind == Refresh {
		t := &RefreshToken{Seq: uint32(b) * 0x01010101}
		for _, field := range [][]byte{t.KID[:], t.Grant[:], t.S[:], t.Tag[:]} {
			copy(field, bytes.Repeat([]byte{b}, len(field)))
		}
		return EncodeRefresh(prefix, t)
	}
	k := &Key{}
	for _, field := range [][]byte{k.KID[:], k.ID[:], k.Secret[:], k.Tag[:]} {
		copy(field, bytes.Repeat([]byte{b}, len(field)))
	}
	return EncodeKey(prefix, kind, k)
}

// takes reports whether the decoder of kind takes token, and what it is written as again.
func takes(token, prefix string, kind Kind) (again string, ok bool) {
	if kind == Refresh {
		t, err := DecodeRefresh(token, prefix)
		if err != nil {
			return "", false
		}
		return EncodeRefresh(prefix, t), true
	}
	k, err := DecodeKey(token, prefix, kind)
	if err != nil {
		return "", false
	}
	return EncodeKey(prefix, kind, k), true
}

func found(text string) (out []string) {
	for token := range Find([]byte(text)) {
		out = append(out, string(token))
	}
	return out
}

// These texts are in the hands of users: another format must bring another version.
func TestTextsStayAsTheyAre(t *testing.T) {
	t.Parallel()
	// Made by another implementation of the format.
	require.Equal(t, "ap_ak_05T5D3g2Tm30bPELAU4eqF0bPELAU4eqF0bPELAU4eqF0bPELAU4eqF0bPELAU4eqF0bPELAU4eqF0bPELAU4eqF0bPELAUGhuV0n", some("ap", APIKey, 7))
	require.Equal(t, "acme_rt_05VfgyV08EL0m5rrmuNheb0m5rrmuNheb0m5rrmuNheb0m5rrmuNheb0m5rrmuNheb0m5rrmuNheb0m5rrmuNheb0m5rrmuNheb0kNSVP2", some("acme", Refresh, 9))
}

func TestTokensHaveTheirShape(t *testing.T) {
	t.Parallel()
	whole := regexp.MustCompile("^(?:" + Pattern + ")$")
	for _, prefix := range []string{"ap", "a1", "abcdefghijklmnop"} {
		for _, kind := range kinds {
			for _, b := range []byte{0, 1, 0x7f, 0xff} {
				token := some(prefix, kind, b)
				require.Regexp(t, whole, token)
				require.Equal(t, kind, KindOf(token))
				again, ok := takes(token, prefix, kind)
				require.True(t, ok)
				require.Equal(t, token, again)
				for _, other := range kinds {
					if other != kind {
						_, ok := takes(token, prefix, other)
						require.False(t, ok, "a %s passes for a %s", kindNames[kind], kindNames[other])
						swapped := strings.Replace(token, "_"+kindNames[kind]+"_", "_"+kindNames[other]+"_", 1)
						_, ok = takes(swapped, prefix, other)
						require.False(t, ok, "a %s renamed to %s passes", kindNames[kind], kindNames[other])
					}
				}
				_, ok = takes(token, "zz", kind)
				require.False(t, ok, "another prefix")
				_, ok = takes("zz"+token[len(prefix):], "zz", kind)
				require.False(t, ok, "the prefix exchanged")
			}
		}
	}
}

func TestChangedTokensNeverPass(t *testing.T) {
	t.Parallel()
	for _, kind := range kinds {
		token := some("ap", kind, 0xa5)
		for i := range token {
			for _, c := range []byte("0Zz_- \x00\n\xff") {
				if token[i] == c {
					continue
				}
				changed := token[:i] + string([]byte{c}) + token[i+1:]
				_, ok := takes(changed, "ap", kind)
				require.False(t, ok, "character %d changed to %q", i, c)
			}
			_, ok := takes(token[:i], "ap", kind)
			require.False(t, ok, "cut to %d characters", i)
			_, ok = takes(token[i+1:], "ap", kind)
			require.False(t, ok, "without its first %d characters", i+1)
			if i > 0 && token[i] != token[i-1] {
				swapped := []byte(token)
				swapped[i], swapped[i-1] = swapped[i-1], swapped[i]
				_, ok = takes(string(swapped), "ap", kind)
				require.False(t, ok, "characters %d and %d exchanged", i-1, i)
			}
		}
		for _, more := range []string{"0", "_", " ", "\n", "\x00", token} {
			_, ok := takes(token+more, "ap", kind)
			require.False(t, ok, "extended by %q", more)
			_, ok = takes(more+token, "ap", kind)
			require.False(t, ok, "%q in front", more)
		}
	}
}

// Digits that say more than the bytes hold would be a second text of the same token.
func TestBase62HasOneTextForEachValue(t *testing.T) {
	t.Parallel()
	for n := 1; n <= 17; n++ {
		for _, b := range []byte{0, 1, 0x80, 0xff} {
			in := bytes.Repeat([]byte{b}, n)
			text := string(appendBase62(nil, in))
			require.Len(t, text, textSize(n))
			out := make([]byte, n)
			require.True(t, decodeBase62(out, text))
			require.Equal(t, in, out)
		}
		require.False(t, decodeBase62(make([]byte, n), strings.Repeat("z", textSize(n))), "more than %d bytes hold", n)
		require.False(t, decodeBase62(make([]byte, n), strings.Repeat("0", textSize(n)+1)))
		require.False(t, decodeBase62(make([]byte, n), strings.Repeat("0", textSize(n)-1)))
	}
	out := make([]byte, 8)
	require.True(t, decodeBase62(out, "LygHa16AHYF")) // 2^64-1
	require.Equal(t, bytes.Repeat([]byte{0xff}, 8), out)
	require.False(t, decodeBase62(out, "LygHa16AHYG")) // 2^64
	require.False(t, decodeBase62(out, "zzzzzzzzzzz"))
}

func TestOtherVersionsAreRefused(t *testing.T) {
	t.Parallel()
	payload := make([]byte, keySize)
	payload[0] = version + 1
	token := encode("ap", APIKey, payload)
	_, err := DecodeKey(token, "ap", APIKey)
	require.ErrorIs(t, err, ErrShape)
	require.Empty(t, found(token))
}

func TestKindOf(t *testing.T) {
	t.Parallel()
	for token, want := range map[string]Kind{
		"":                      None,
		"ap":                    None,
		"ap_ak":                 None,
		"ap_ak_":                APIKey,
		"ap_rt_x":               Refresh,
		"ap_tk_x":               Ticket,
		"ap_cs_x":               ClientSecret,
		"ap_xx_x":               None,
		"a_ak_x":                None,
		"AP_ak_x":               None,
		"1p_ak_x":               None,
		"a-p_ak_x":              None,
		"abcdefghijklmnop_ak_x": APIKey,
		"abcdefghijklmnopq_ak_": None,
		"eyJh_ak_.e30.AA":       None,
		"ey_ak_h.e30.AA":        None,
		"__ak_x":                None,
	} {
		require.Equal(t, want, KindOf(token), "%q", token)
	}
}

// Keys that were made in the same moment are told apart by what lists show of them, at its end, whatever the time.
func TestStartsTellKeysApart(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	now := time.Now()
	for range 10_000 {
		k := Key{ID: NewID(now)}
		rand.Read(k.Secret[:])
		start := Start(EncodeKey("ap", APIKey, &k))
		end := start[len(start)-9:]
		require.False(t, seen[end], "%q ends as another one does", start)
		seen[end] = true
	}
	last, different := "", 0
	for end := range seen {
		for i := 2; i < len(last); i++ { // the first two of the nine hold the last bits of the time
			if end[i] != last[i] {
				different++
			}
		}
		last = end
	}
	require.Greater(t, float64(different)/float64(len(seen)), 6.5, "nearly every one of the last seven differs")
}

func TestStartShowsNothingOfTheSecret(t *testing.T) {
	t.Parallel()
	for _, kind := range kinds {
		var a, b Key
		rand.Read(a.ID[:])
		b.ID = a.ID
		rand.Read(a.Secret[:])
		rand.Read(b.Secret[:])
		rand.Read(b.Tag[:])
		one, two := EncodeKey("ap", kind, &a), EncodeKey("ap", kind, &b)
		if kind == Refresh {
			one = EncodeRefresh("ap", &RefreshToken{Grant: a.ID, S: a.Secret})
			two = EncodeRefresh("ap", &RefreshToken{Grant: b.ID, S: b.Secret, Tag: b.Tag})
		}
		require.Equal(t, Start(one), Start(two))
		require.Len(t, Start(one), 28)
		require.NotEqual(t, one, two)
	}
	for _, short := range []string{"", "x", "ap_ak_", "ap_ak_abc", "___"} {
		require.Equal(t, short, Start(short))
	}
}

func TestFind(t *testing.T) {
	t.Parallel()
	key, other, old := some("ap", APIKey, 7), some("acme2", ClientSecret, 9), some("ap", Refresh, 1)
	for name, c := range map[string]struct {
		text string
		want []string
	}{
		"nothing":                     {"", nil},
		"alone":                       {key, []string{key}},
		"in a line":                   {"Authorization: Bearer " + key + "\r\n", []string{key}},
		"in quotes":                   {`{"key":"` + other + `","x":1}`, []string{other}},
		"three, with other prefixes":  {key + " " + other + "," + old, []string{key, other, old}},
		"side by side":                {key + other + old, []string{key, other, old}},
		"letters adjoin":              {"xx" + key + "yy9", []string{key}},
		"many letters adjoin":         {strings.Repeat("x", 100) + key, []string{key}},
		"an underscore adjoins":       {"MY_KEY_" + key + "_", []string{key}},
		"a start of a token in front": {"ap_ak_" + key, []string{key}},
		"a cut token in front":        {key[:50] + key, []string{key}},
		"cut":                         {key[:len(key)-1], nil},
		"cut at its start":            {key[2:], nil},
		"a changed one":               {"ap_ak_" + strings.Repeat("0", 101), nil},
		"split over lines":            {key[:40] + "\n" + key[40:], nil},
		"in capitals":                 {strings.ToUpper(key), nil},
		"not text":                    {"\xff\xfe" + key + "\x00", []string{key}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, c.want, found(c.text))
		})
	}
	t.Run("stops when asked to", func(t *testing.T) {
		t.Parallel()
		n := 0
		for range Find([]byte(key + key + key)) {
			n++
			break
		}
		require.Equal(t, 1, n)
	})
}

// A text that looks like tokens everywhere must not cost memory for each of them.
func TestFindDoesNotAllocate(t *testing.T) { // not parallel: AllocsPerRun
	text := []byte(strings.Repeat("ap_ak_ some text without any ", 1000) + strings.Repeat("ap_ak_"+strings.Repeat("0", 101)+" ", 100))
	require.LessOrEqual(t, testing.AllocsPerRun(5, func() {
		for range Find(text) {
			t.Fail()
		}
	}), 4.0)
}

func TestIDs(t *testing.T) {
	t.Parallel()
	now := time.UnixMilli(1_800_000_000_000)
	early, late := NewID(now), NewID(now.Add(time.Millisecond))
	require.Less(t, early.String(), late.String(), "as text they stand in the order of time")
	require.Negative(t, bytes.Compare(early[:], late[:]))
	require.Len(t, early.String(), idTextSize)
	back, err := ParseID(early.String())
	require.NoError(t, err)
	require.Equal(t, early, back)
	require.Equal(t, make([]byte, 6), func() []byte { id := NewID(time.Time{}); return id[:6] }(), "before the epoch is the epoch")

	text := early.String()
	for name, bad := range map[string]string{
		"nothing": "", "cut": text[:25], "longer": text + "0", "capitals": strings.ToUpper(text[:25] + "a"), "a letter too many": text[:25] + "w",
		"spare bits": text[:25] + "1", "a line break": text[:24] + "\n" + text[25:], "line breaks": strings.Repeat("\n", 26), "padding": text[:25] + "=",
	} {
		_, err := ParseID(bad)
		require.ErrorIs(t, err, ErrShape, name)
	}
}

// What is written by hand for speed is what the standard library writes.
func TestIDsAreBase32Hex(t *testing.T) {
	t.Parallel()
	std := base32.HexEncoding.WithPadding(base32.NoPadding)
	check := func(id ID) {
		text := strings.ToLower(std.EncodeToString(id[:]))
		require.Equal(t, text, id.String())
		back, err := ParseID(text)
		require.NoError(t, err)
		require.Equal(t, id, back)
	}
	for bit := range 128 {
		var id ID
		id[bit/8] = 0x80 >> (bit % 8)
		check(id)
	}
	for range 200 {
		var id ID
		rand.Read(id[:])
		check(id)
		text := []byte(id.String())
		for c := range 256 { // each character in a place of its own
			at := c % (idTextSize - 1)
			was := text[at]
			text[at] = byte(c)
			_, err := ParseID(string(text))
			require.Equal(t, strings.IndexByte(idDigits, byte(c)) < 0, err != nil, "%q at %d", c, at)
			text[at] = was
		}
	}
}

func TestIDsAreOnce(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_800_000_000, 0)
	var mu sync.Mutex
	seen := map[ID]bool{}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			var own []ID
			for range 1000 {
				own = append(own, NewID(now))
			}
			mu.Lock()
			defer mu.Unlock()
			for _, id := range own {
				seen[id] = true
			}
		})
	}
	wg.Wait()
	require.Len(t, seen, 8000)
}

// Fields that are moved over a border make another text: each has its length before it.
func TestFieldsDoNotRunTogether(t *testing.T) {
	t.Parallel()
	hashes := [][32]byte{
		Hash("a"), Hash("a", nil), Hash("a", nil, nil), Hash("ab"), Hash("a", []byte("b")), Hash("a", []byte("bc")), Hash("a", []byte("b"), []byte("c")),
		Hash("a", nil, []byte("bc")), Hash("a", []byte("bc"), nil), Hash("", []byte("abc")), Hash("a", Uint32(1)), Hash("a", Uint32(256)),
	}
	slices.SortFunc(hashes, func(a, b [32]byte) int { return bytes.Compare(a[:], b[:]) })
	require.Len(t, slices.Compact(hashes), 12)
	one := MAC([]byte("k"), "a", []byte("b"))
	require.NotEqual(t, one, MAC([]byte("l"), "a", []byte("b")))
	require.NotEqual(t, one, Hash("a", []byte("b")))
	tag := Tag([]byte("k"), "a", []byte("b"))
	require.Equal(t, one[:16], tag[:])
	// HMAC-SHA256 over 00000001 61 00000001 62 under "k", by another implementation.
	require.Equal(t, "320484d5fda9a4ab3f5286551af2ff0ea6de51f2bcad5693031d0d3dfe4b7855", hex.EncodeToString(one[:]))
}
