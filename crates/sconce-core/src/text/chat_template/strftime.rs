//! Dates for templates, as C's `strftime` writes them in English, in UTC.

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// `format` with its `%` codes replaced, for the moment `seconds` after 1970 began. `%-d` and the like leave out
/// leading zeros. The error names a code that is not known.
pub(super) fn strftime(format: &str, seconds: u64) -> Result<String, String> {
    let moment = Moment::at(seconds);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut code = chars.next();
        let bare = code == Some('-');
        if bare {
            code = chars.next();
        }
        let text = code.and_then(|code| moment.field(code));
        let Some(text) = text else {
            let code: String = bare.then_some('-').into_iter().chain(code).collect();
            return Err(format!("strftime_now: the code %{code} is not known"));
        };
        let trimmed = text.trim_start_matches(['0', ' ']);
        out.push_str(match trimmed {
            _ if !bare => &text,
            "" => "0",
            _ => trimmed,
        });
    }
    Ok(out)
}

/// A moment's fields, in the Gregorian calendar.
struct Moment {
    year: u64,
    /// 0 is January.
    month: usize,
    day: u64,
    /// 0 is January 1st.
    day_of_year: u64,
    /// 0 is Sunday.
    weekday: usize,
    hour: u64,
    minute: u64,
    second: u64,
    seconds: u64,
}

impl Moment {
    fn at(seconds: u64) -> Self {
        let days = seconds / 86_400;
        // Years are counted from March, so that a leap day is a year's last; eras of 400 years are all alike.
        let from_march = days + 719_468;
        let (era, day_of_era) = (from_march / 146_097, from_march % 146_097);
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_march_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_march_year + 2) / 153;
        let day = day_of_march_year - (153 * month_from_march + 2) / 5 + 1;
        let month = (month_from_march + 2) % 12;
        let year = era * 400 + year_of_era + u64::from(month < 2);
        let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        let day_of_year = if month < 2 { day_of_march_year - 306 } else { day_of_march_year + 59 + u64::from(leap) };
        Self {
            year,
            month: month as usize,
            day,
            day_of_year,
            weekday: ((days + 4) % 7) as usize,
            hour: seconds / 3_600 % 24,
            minute: seconds / 60 % 60,
            second: seconds % 60,
            seconds,
        }
    }

    fn field(&self, code: char) -> Option<String> {
        let Self { year, month, day, hour, minute, second, .. } = self;
        let month_number = month + 1;
        let half_day_hour = (hour + 11) % 12 + 1;
        Some(match code {
            'a' => DAYS[self.weekday][..3].into(),
            'A' => DAYS[self.weekday].into(),
            'b' | 'h' => MONTHS[*month][..3].into(),
            'B' => MONTHS[*month].into(),
            'd' => format!("{day:02}"),
            'e' => format!("{day:2}"),
            'D' => format!("{month_number:02}/{day:02}/{:02}", year % 100),
            'F' => format!("{year}-{month_number:02}-{day:02}"),
            'H' => format!("{hour:02}"),
            'I' => format!("{half_day_hour:02}"),
            'j' => format!("{:03}", self.day_of_year + 1),
            'm' => format!("{month_number:02}"),
            'M' => format!("{minute:02}"),
            'n' => "\n".into(),
            'p' => if *hour < 12 { "AM" } else { "PM" }.into(),
            'R' => format!("{hour:02}:{minute:02}"),
            's' => self.seconds.to_string(),
            'S' => format!("{second:02}"),
            't' => "\t".into(),
            'T' => format!("{hour:02}:{minute:02}:{second:02}"),
            'u' => ((self.weekday + 6) % 7 + 1).to_string(),
            'w' => self.weekday.to_string(),
            'y' => format!("{:02}", year % 100),
            'Y' => year.to_string(),
            'z' => "+0000".into(),
            'Z' => "UTC".into(),
            '%' => "%".into(),
            _ => return None,
        })
    }
}
