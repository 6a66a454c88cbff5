package jws

import (
	"encoding/base64"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

// members is an object of n members.
func members(n int) string {
	var b strings.Builder
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(`"n` + strconv.Itoa(i) + `":0`)
	}
	return "{" + b.String() + "}"
}

func TestJSONIsStrict(t *testing.T) {
	t.Parallel()
	deep := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }
	for name, c := range map[string]struct {
		doc  string
		want error // nil: taken
	}{
		"an object":                         {`{"a":[1,-2.5e3,true,false,null,"x"]}`, nil},
		"white space":                       {" \t\r\n{ \"a\" : 1 } \n", nil},
		"an escaped pair":                   {`"\ud83d\ude00"`, nil},
		"every escape":                      {`"\"\\\/\b\f\n\r\t\u0041"`, nil},
		"nothing":                           {"", errSyntax},
		"a byte order mark":                 {"\ufeff{}", errSyntax},
		"two values":                        {"{} {}", errSyntax},
		"a trailing comma":                  {`{"a":1,}`, errSyntax},
		"a trailing comma in a list":        {`[1,]`, errSyntax},
		"a comment":                         {`{} // x`, errSyntax},
		"single quotes":                     {`{'a':1}`, errSyntax},
		"a control in a text":               {"\"a\nb\"", errSyntax},
		"an unknown escape":                 {`"\x41"`, errSyntax},
		"a cut escape":                      {`"\u00`, errSyntax},
		"a leading zero":                    {"01", errSyntax},
		"a plus":                            {"+1", errSyntax},
		"a bare point":                      {"1.", errSyntax},
		"a bare exponent":                   {"1e", errSyntax},
		"not a number":                      {"NaN", errSyntax},
		"a word in capitals":                {"True", errSyntax},
		"a name twice":                      {`{"a":1,"a":1}`, errDouble},
		"a name twice, escaped":             {`{"a":1,"\u0061":1}`, errDouble},
		"a name twice, in another case":     {`{"a":1,"A":1}`, errDouble},
		"a name twice, folded beyond ASCII": {`{"k":1,"` + "\u212a" + `":1}`, errDouble}, // the Kelvin sign
		"a name twice, deep":                {`[{"x":{"a":1,"a":1}}]`, errDouble},
		"not UTF-8":                         {"\"\xff\"", errUTF8},
		"not UTF-8, beside an escape":       {"\"\\n\xc3\"", errUTF8},
		"an overlong encoding":              {"\"\xc0\xaf\"", errUTF8},
		"an encoded surrogate":              {"\"\xed\xa0\x80\"", errUTF8},
		"not UTF-8, in a name":              {"{\"\xff\":1}", errUTF8},
		"a lone high surrogate":             {`"\ud800"`, errUTF8},
		"a lone low surrogate":              {`"\udc00"`, errUTF8},
		"two high surrogates":               {`"\ud800\ud800"`, errUTF8},
		"a high surrogate and a letter":     {`"\ud800\u0041"`, errUTF8},
		"as deep as allowed":                {deep(maxDepth + 1), nil},
		"deeper":                            {deep(maxDepth + 2), errDepth},
		"far deeper":                        {strings.Repeat("[", 100_000), errDepth},
		"as many members as allowed":        {members(maxMembers), nil},
		"more members":                      {members(maxMembers + 1), errMembers},
		"a number as long as allowed":       {strings.Repeat("9", maxNumber), nil},
		"a longer number":                   {strings.Repeat("9", maxNumber+1), errNumber},
		"an absurd exponent":                {"1e9999", errNumber},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.ErrorIs(t, CheckJSON([]byte(c.doc)), c.want)
			sameAsReference(t, c.doc)
		})
	}
}

// Names beyond the first few are looked up by their folded form: it must tell apart what strings.EqualFold does.
func TestFoldedNames(t *testing.T) {
	t.Parallel()
	for r := rune(0); r <= unicode.MaxRune; r++ {
		if !utf8.ValidRune(r) {
			continue
		}
		want := folded(string(r))
		for o := unicode.SimpleFold(r); o != r; o = unicode.SimpleFold(o) {
			if folded(string(o)) != want {
				t.Fatalf("%q and %q are one letter", r, o)
			}
		}
		if !strings.EqualFold(want, string(r)) {
			t.Fatalf("%q is folded to another letter, %q", r, want)
		}
	}
	first := members(maxMembers - 10)
	for _, pair := range [][2]string{{"late", "LATE"}, {"n3", "N3"}, {"k", "\u212a"}, {"s", "\u017f"}, {"ß", "ẞ"}, {"x", "\u0058"}} {
		doc := first[:len(first)-1] + `,"` + pair[0] + `":1,"` + pair[1] + `":1}`
		require.ErrorIs(t, CheckJSON([]byte(doc)), errDouble, pair)
	}
	require.NoError(t, CheckJSON([]byte(first[:len(first)-1]+`,"ss":1,"ß":1,"i":1,"ı":1}`)), "these are different names")
}

func TestTokenHasOneText(t *testing.T) {
	t.Parallel()
	good := b64(`{"alg":"ES256"}`) + "." + b64(`{"iss":"a"}`) + "." + b64("sig!")
	var tok Token
	require.NoError(t, Parse(good, len(good), &tok))
	require.Equal(t, []byte("sig!"), tok.Signature)
	for name, c := range map[string]struct {
		token string
		want  error
	}{
		"nothing":                 {"", errParts},
		"two parts":               {good[:strings.LastIndexByte(good, '.')], errParts},
		"four parts":              {good + ".AA", errParts},
		"no header":               {good[strings.IndexByte(good, '.'):], errParts},
		"no payload":              {b64(`{"alg":"ES256"}`) + "..AA", errParts},
		"no signature":            {good[:strings.LastIndexByte(good, '.')+1], errSignature},
		"padding":                 {good + "=", errBase64},
		"a line break":            {good + "\n", errBase64},
		"a line break inside":     {good[:3] + "\n" + good[3:], errBase64},
		"a space in front":        {" " + good, errBase64},
		"the other alphabet":      {b64(`{"alg":"ES256"}`) + "." + b64(`{"iss":"a"}`) + ".A+/A", errBase64},
		"spare bits":              {b64(`{"alg":"ES256"}`) + "." + b64(`{"iss":"a"}`) + ".AB", errBase64},
		"a part of 4n+1":          {b64(`{"alg":"ES256"}`) + "." + b64(`{"iss":"a"}`) + ".AAAAA", errBase64},
		"the JSON form":           {`{"payload":"e30","signatures":[]}`, errParts},
		"a header too large":      {b64(`{"alg":"ES256","x":"`+strings.Repeat("x", maxHeaderBytes)+`"}`) + ".e30.AA", errSize},
		"a kid too long":          {b64(`{"alg":"ES256","kid":"`+strings.Repeat("x", maxKID+1)+`"}`) + ".e30.AA", errSize},
		"no alg":                  {b64(`{}`) + ".e30.AA", errAlg},
		"an empty alg":            {b64(`{"alg":""}`) + ".e30.AA", errAlg},
		"alg of another type":     {b64(`{"alg":["ES256"]}`) + ".e30.AA", errType},
		"alg in another case":     {b64(`{"ALG":"ES256"}`) + ".e30.AA", errCase},
		"alg twice":               {b64(`{"alg":"ES256","alg":"none"}`) + ".e30.AA", errDouble},
		"crit, even empty":        {b64(`{"alg":"ES256","crit":[]}`) + ".e30.AA", errHeader},
		"a key in the header":     {b64(`{"alg":"ES256","jwk":{}}`) + ".e30.AA", errHeader},
		"an address of keys":      {b64(`{"alg":"ES256","jku":"https://a"}`) + ".e30.AA", errHeader},
		"compressed":              {b64(`{"alg":"ES256","zip":"DEF"}`) + ".e30.AA", errHeader},
		"an unencoded payload":    {b64(`{"alg":"ES256","b64":false}`) + ".e30.AA", errHeader},
		"a header and more":       {b64(`{"alg":"ES256"}x`) + ".e30.AA", errSyntax},
		"a payload and more":      {b64(`{"alg":"ES256"}`) + "." + b64("{}x") + ".AA", errSyntax},
		"a payload of a list":     {b64(`{"alg":"ES256"}`) + "." + b64("[]") + ".AA", errSyntax},
		"a claim twice":           {b64(`{"alg":"ES256"}`) + "." + b64(`{"sub":"a","sub":"a"}`) + ".AA", errDouble},
		"a claim's other case":    {b64(`{"alg":"ES256"}`) + "." + b64(`{"Sub":"a"}`) + ".AA", errCase},
		"sub of another type":     {b64(`{"alg":"ES256"}`) + "." + b64(`{"sub":1}`) + ".AA", errType},
		"exp as a text":           {b64(`{"alg":"ES256"}`) + "." + b64(`{"exp":"1"}`) + ".AA", errType},
		"exp before the epoch":    {b64(`{"alg":"ES256"}`) + "." + b64(`{"exp":-1}`) + ".AA", errNumber},
		"exp after year 9999":     {b64(`{"alg":"ES256"}`) + "." + b64(`{"exp":253402300800}`) + ".AA", errNumber},
		"exp by exponent":         {b64(`{"alg":"ES256"}`) + "." + b64(`{"exp":1e9}`) + ".AA", errNumber},
		"exp, then an exponent":   {b64(`{"alg":"ES256"}`) + "." + b64(`{"exp":1.5e9}`) + ".AA", errNumber},
		"an actor without sub":    {b64(`{"alg":"ES256"}`) + "." + b64(`{"act":{}}`) + ".AA", errType},
		"too many actors":         {b64(`{"alg":"ES256"}`) + "." + b64(strings.Repeat(`{"sub":"a","act":`, maxActors+1)+"{}"+strings.Repeat("}", maxActors+1)) + ".AA", errDepth},
		"too many audiences":      {b64(`{"alg":"ES256"}`) + "." + b64(`{"aud":["a"`+strings.Repeat(`,"a"`, maxAudience)+`]}`) + ".AA", errMembers},
		"an audience of a number": {b64(`{"alg":"ES256"}`) + "." + b64(`{"aud":[1]}`) + ".AA", errType},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var tok Token
			require.ErrorIs(t, Parse(c.token, fuzzLimit, &tok), c.want)
		})
	}
	t.Run("one byte over the limit", func(t *testing.T) {
		t.Parallel()
		var tok Token
		require.ErrorIs(t, Parse(good, len(good)-1, &tok), errSize)
	})
}

// A Token that is used again must hold nothing of the one before.
func TestParseLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	full := b64(`{"alg":"ES256","kid":"k","typ":"at+jwt","jwk":{}}`) + "." +
		b64(`{"iss":"a","sub":"b","aud":"c","exp":9,"iat":1,"roles":["r"],"act":{"sub":"z"},"cnf":{"jkt":"t"},"own":1}`) + ".AAAA"
	var tok Token
	require.NoError(t, ParseProof(full, fuzzLimit, &tok))
	require.Equal(t, `{"own":1}`, string(tok.PrivateClaims()))
	require.NoError(t, Parse(b64(`{"alg":"RS256"}`)+".e30.AA", fuzzLimit, &tok))
	require.Equal(t, Header{Alg: "RS256"}, tok.Header)
	require.Equal(t, Claims{}, tok.Claims)
	require.Nil(t, tok.PrivateClaims())
}

// A known header spares its reading and nothing else.
func TestKnownHeadersChangeNothing(t *testing.T) {
	t.Parallel()
	var known Headers
	key := testKeys(t)["ES256"]
	sign := func(header, payload string) string {
		input := b64(header) + "." + b64(payload)
		return input + "." + base64.RawURLEncoding.EncodeToString(key.sign(t, input))
	}
	const header = `{"alg":"ES256","kid":"k","typ":"at+jwt"}`
	one, two := sign(header, `{"iss":"a","own":1}`), sign(header, `{"iss":"b","aud":["x","y"]}`)
	var first Token
	require.NoError(t, known.Parse(one, fuzzLimit, &first))
	require.False(t, first.learned)
	known.Learn(&first)

	for name, token := range map[string]string{
		"the same": one, "another with its header": two, "another header": sign(`{"alg":"ES256","kid":"other","typ":"at+jwt"}`, `{"iss":"b"}`),
		"the same header, spelled otherwise": sign(header+" ", `{"iss":"b"}`), "claims that are not strict": sign(header, `{"iss":"b","iss":"b"}`),
		"a header that is refused": sign(`{"alg":"ES256","crit":["x"]}`, `{}`), "a spare bit in the signature": one[:len(one)-1] + "B",
		"a spare bit in the header": b64(header)[:len(b64(header))-1] + "1" + one[len(b64(header)):], "a cut body": b64(header) + ".e.AA", "no body": b64(header) + "..AA",
	} {
		var with, without Token
		errWith, errWithout := known.Parse(token, fuzzLimit, &with), Parse(token, fuzzLimit, &without)
		require.Equal(t, errWithout, errWith, name)
		if errWith != nil {
			continue
		}
		require.Equal(t, strings.HasPrefix(token, b64(header)+"."), with.learned, name)
		require.Equal(t, without.Header, with.Header, name)
		require.Equal(t, without.Claims, with.Claims, name)
		require.Equal(t, without.Signature, with.Signature, name)
		require.Equal(t, without.PrivateClaims(), with.PrivateClaims(), name)
		require.NoError(t, key.public.Verify(with.SigningInput, with.Signature), name)
	}

	other := func(i int) (tok Token) {
		text := b64(`{"alg":"ES256","kid":"`+strconv.Itoa(i)+`"}`) + ".e30.AA"
		require.NoError(t, known.Parse(text, fuzzLimit, &tok))
		return tok
	}
	for i := range maxHeaders { // an issuer's keys come and go
		tok := other(i)
		known.Learn(&tok)
		require.LessOrEqual(t, len(*known.known.Load()), maxHeaders)
	}
	full := known.known.Load()
	for i := range 16*maxHeaders - 2 { // or it writes something else into each header
		tok := other(maxHeaders + i)
		known.Learn(&tok)
	}
	require.Same(t, full, known.known.Load())
	tok := other(-1)
	known.Learn(&tok)
	require.Len(t, *known.known.Load(), 1, "it begins anew")
	tok = other(-1)
	require.True(t, tok.learned)
}

// The claims and what is learned are copies: a caller's string may be a part of something large, or of memory that changes.
func TestNothingOfACallersTokenIsKept(t *testing.T) {
	t.Parallel()
	const header = `{"alg":"ES256","kid":"k","typ":"at+jwt"}`
	caller := []byte(b64(header) + "." + b64(`{"iss":"a","sub":"b","aud":"c"}`) + ".AAAA")
	text := string(caller)
	var known Headers
	var tok Token
	require.NoError(t, known.Parse(asString(caller), fuzzLimit, &tok))
	known.Learn(&tok)
	clear(caller)
	require.Equal(t, "b", tok.Claims.Subject)
	require.NoError(t, known.Parse(text, fuzzLimit, &tok))
	require.True(t, tok.learned)
	require.Equal(t, Header{Alg: "ES256", KID: "k", Typ: "at+jwt"}, tok.Header)
}

func TestWhereTextEnds(t *testing.T) {
	t.Parallel()
	slow := func(s string, i int) (int, bool) {
		ascii := true
		for ; i < len(s) && s[i] != '"' && s[i] != '\\' && s[i] >= ' '; i++ {
			ascii = ascii && s[i] < utf8.RuneSelf
		}
		return i, ascii
	}
	for at := range 24 {
		for c := range 256 {
			for _, behind := range []string{"", "\x00", "\"\\\x1f\x20\x80\xff"} {
				b := []byte(strings.Repeat("!", 24) + behind)
				b[at] = byte(c)
				for _, from := range []int{0, 1, 7, 9} {
					end, ascii := plainEnd(string(b), from)
					wantEnd, wantASCII := slow(string(b), from)
					if end != wantEnd || ascii != wantASCII {
						t.Fatalf("%q from %d: %d %v, not %d %v", b, from, end, ascii, wantEnd, wantASCII)
					}
				}
			}
		}
	}
}

func TestBase64IsTheStandardLibrarysStrictOne(t *testing.T) {
	t.Parallel()
	std := base64.RawURLEncoding.Strict()
	for n := range 40 {
		for c := range 256 {
			s := []byte(strings.Repeat("Zg-_", 10)[:n])
			if n > 0 {
				s[c%n] = byte(c)
			}
			want, err := std.DecodeString(string(s))
			if strings.ContainsAny(string(s), "\r\n") {
				err = errBase64 // it passes over them
			}
			got, ok := decode64(make([]byte, decodedSize(n)), string(s))
			require.Equal(t, err == nil, ok, "%q", s)
			if ok {
				require.Equal(t, want, append([]byte{}, got...), "%q", s)
			}
		}
	}
}

func TestTextsOfProofs(t *testing.T) {
	t.Parallel()
	read := func(payload, name string) (string, error) {
		var tok Token
		require.NoError(t, ParseProof(b64(`{"alg":"ES256"}`)+"."+b64(payload)+".AA", fuzzLimit, &tok))
		return tok.Text(name)
	}
	text, err := read(`{"htm":"GET","htu":"x"}`, "htm")
	require.NoError(t, err)
	require.Equal(t, "GET", text)
	text, err = read(`{"htu":"x"}`, "htm")
	require.NoError(t, err)
	require.Empty(t, text)
	_, err = read(`{"HTM":"GET"}`, "htm")
	require.ErrorIs(t, err, errCase, "another case is not the member, and not nothing either")
	_, err = read(`{"htm":1}`, "htm")
	require.ErrorIs(t, err, errType)
}

func TestMediaTypes(t *testing.T) {
	t.Parallel()
	for typ, want := range map[string]bool{
		"at+jwt": true, "AT+JWT": true, "application/at+jwt": true, "Application/AT+jwt": true,
		"": false, "jwt": false, "at+jwt ": false, "application/": false, "application/application/at+jwt": false, "text/at+jwt": false, "xat+jwt": false,
	} {
		require.Equal(t, want, IsType(typ, "at+jwt"), "%q", typ)
	}
}

// What is read before the signature is checked must not cost more memory than the one who sends it pays for.
func TestReadingCostsInProportion(t *testing.T) { // not parallel: it counts the process's bytes
	wrap := func(payload string) string { return b64(`{"alg":"ES256"}`) + "." + b64(payload) + ".AA" }
	fill := func(open, each, end string) string {
		return wrap(open + strings.Repeat(each, (5<<10)/len(each)) + end)
	}
	for name, token := range map[string]string{
		"deep lists":       fill(`{"x":`, "[", ""),
		"deep objects":     fill(`{"x":`, `{"a":`, ""),
		"empty objects":    fill(`{"x":[`, `{},`, `0]}`),
		"small objects":    fill(`{"x":[`, `{"a":1},`, `0]}`),
		"empty texts":      fill(`{"x":[`, `"",`, `""]}`),
		"escaped texts":    fill(`{"x":[`, `"\n",`, `""]}`),
		"one escaped text": fill(`{"x":"`, `\u0041`, `"}`),
		"audiences":        fill(`{"aud":[`, `"",`, `""]}`),
		"actors":           fill(`{"act":`, `{"sub":"a","act":`, ``),
		"numbers":          fill(`{"x":[`, `1,`, `1]}`),
		"members":          wrap(members(200)),
		"a few members":    fill(`{"x":[`, members(17)+",", `0]}`),
	} {
		t.Run(name, func(t *testing.T) {
			const rounds = 50
			var tok Token
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			for range rounds {
				tok = Token{}
				_ = Parse(token, fuzzLimit, &tok)
			}
			runtime.ReadMemStats(&after)
			if each := (after.TotalAlloc - before.TotalAlloc) / rounds; each > uint64(12*len(token)+4096) {
				t.Fatalf("%d bytes of token take %d bytes of memory", len(token), each)
			}
		})
	}
}
