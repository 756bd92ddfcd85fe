// What the registry's own decoder makes of a TTL state: one base64 line in, one JSON line out.
//
// The struct is the scheduler's (v3.1.2:registry/proxy/scheduler/scheduler.go:23-31; 2.8 has the
// same), and what is done with it is what Start does: unmarshal, then look at every entry's time.
package main

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"time"
)

type schedulerEntry struct {
	Key       string    `json:"Key"`
	Expiry    time.Time `json:"ExpiryData"`
	EntryType int       `json:"EntryType"`
}

type entry struct {
	Key     string
	Seconds int64
	Nanos   int
	Type    int
}

type answer struct {
	// Why a registry cannot start on it, or dies later; empty if it can.
	Refused string
	Entries map[string]entry
	// What the registry would write.
	Written string
}

func decode(raw []byte) (found answer) {
	defer func() {
		if problem := recover(); problem != nil {
			found = answer{Refused: fmt.Sprint("panic: ", problem)}
		}
	}()
	entries := make(map[string]*schedulerEntry)
	if err := json.Unmarshal(raw, &entries); err != nil {
		return answer{Refused: err.Error()}
	}
	if entries == nil {
		return answer{Refused: "null: the next fill assigns to a nil map"}
	}
	found.Entries = make(map[string]entry)
	for name, e := range entries {
		_ = time.Until(e.Expiry)
		found.Entries[name] = entry{e.Key, e.Expiry.Unix(), e.Expiry.Nanosecond(), e.EntryType}
	}
	if written, err := json.Marshal(entries); err == nil {
		found.Written = string(written)
	}
	return found
}

func main() {
	in := bufio.NewReaderSize(os.Stdin, 1<<16)
	out := bufio.NewWriter(os.Stdout)
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return
		}
		raw, err := base64.StdEncoding.DecodeString(string(line[:len(line)-1]))
		if err != nil {
			panic(err)
		}
		text, err := json.Marshal(decode(raw))
		if err != nil {
			panic(err)
		}
		out.Write(text)
		out.WriteByte('\n')
		out.Flush()
	}
}
